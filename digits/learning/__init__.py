"""What learns: networks, training, evaluation, export."""
