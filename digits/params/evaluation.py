"""The section `evaluate`, which evaluate reads."""

from digits.params.reading import Count, Section


class EvaluateParams(Section):
    bins: Count
    gallery: Count
