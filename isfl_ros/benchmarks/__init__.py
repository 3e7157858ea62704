"""Measurement: what a network costs here, beside what it must cost at least and beside its opponents.

``run`` is the whole benchmark as one function; ``gpu`` runs everything that needs a CUDA device with one command.
"""
