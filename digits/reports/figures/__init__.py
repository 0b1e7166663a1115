"""Every picture, a module for each consumer; the only importers of matplotlib."""
