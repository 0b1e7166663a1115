"""The library behind the pipeline: what the stages, the tools and your own code share.

Read it in this order: `params` (every knob), `sources` and `data` (images), `models`, `training`, `evaluation`,
`exporting`; then `lineage` and `tracking`, which say what a result was made of and keep it. The tools `predict`,
`provenance` and `integrity` stand at the end of that line: no stage depends on them.
"""
