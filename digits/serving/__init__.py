"""The exported model applied to a person's own images, without torch."""
