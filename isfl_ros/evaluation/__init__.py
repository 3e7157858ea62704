"""Evaluation of fused pictures: metrics, free baselines, person contrast, paired comparison and report.

Two loops: :mod:`~isfl_ros.evaluation.predict` fuses every pair once and keeps the pictures,
:mod:`~isfl_ros.evaluation.scoring` scores what was kept. ``sets`` says which pairs can be used, ``methods`` what makes
the rows, ``compare`` what the scores mean, ``report`` writes it down (``tables``, ``robustness``, ``sheets``,
``plots``, ``page``). ``missing`` and ``flicker`` measure what the metrics do not see, in both loops and in the second.
"""
