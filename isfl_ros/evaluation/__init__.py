"""Evaluation of fused pictures: metrics, free baselines, person contrast, prediction and report.

Two loops: :mod:`~isfl_ros.evaluation.predict` fuses every pair once and keeps the pictures,
:mod:`~isfl_ros.evaluation.report` scores what was kept.
"""
