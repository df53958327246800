"""A backend that fails, to be named on the command line."""

from mutants import MUTANTS

backend = MUTANTS["skip-dropped"][0]
