"""What people look at: figures, advice, significance tests, the model card."""
