"""Commands that people run: `python -m digits` lists them."""
