"""Tasks for lmms-eval that it lacks: NExT-GQA, ReXTime and CG-Bench with their grounding.

`lmms-eval --include_path FOLDER --tasks zoomzero_nextgqa` takes this folder; docs/evaluating.md has the whole command.
Annotations and videos are read from $ZOOMZERO_BENCHMARKS/<name>, as `zoomzero.annotations.load_benchmark` reads them.
"""
