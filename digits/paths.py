"""The files that the stages hand to one another, relative to the repository's root; dvc.yaml lists the same.

Files are the whole interface between stages: delete the MLflow database and nothing is lost but history.
"""

from pathlib import Path

RAW = Path("data/raw")
TRAIN = Path("data/splits/train.safetensors")
VALIDATION = Path("data/splits/validation.safetensors")
TEST = Path("data/splits/test.safetensors")

MODEL = Path("models/model.safetensors")
ONNX = Path("models/export/model.onnx")
PT2 = Path("models/export/model.pt2")
MODEL_CARD = Path("models/export/MODEL_CARD.md")

DATASET_METRICS = Path("metrics/dataset.json")
TRAIN_METRICS = Path("metrics/train.json")
TEST_METRICS = Path("metrics/test.json")
EVIDENCE = Path("metrics/evidence.json")
EXPORT_METRICS = Path("metrics/export.json")

OVERVIEW = Path("plots/overview.png")
SAMPLES = Path("plots/samples.png")
CLASS_BALANCE = Path("plots/class_balance.png")
CURVE_TABLE = Path("plots/training.csv")
CURVE = Path("plots/training.png")
AUGMENTATION = Path("plots/augmentation.png")
VALIDATION_TABLE = Path("plots/validation.csv")
CONFUSION_TABLE = Path("plots/confusion.csv")
CONFUSION = Path("plots/confusion.png")
MISCLASSIFIED = Path("plots/misclassified.png")
RECALL = Path("plots/recall.png")
RELIABILITY = Path("plots/reliability.png")
ROBUSTNESS_TABLE = Path("plots/robustness.csv")
ROBUSTNESS = Path("plots/robustness.png")
EMBEDDING = Path("plots/embedding.png")
