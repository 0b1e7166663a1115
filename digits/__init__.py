"""The library behind the pipeline: what the stages, the tools and your own code share.

Read it in this order: `params` (every knob), `sources` and `data` (images), `models`, `training`, `evaluation`,
`exporting`. `figures`, `tracking` and `predict` stand beside that line; nothing else depends on them.
"""
