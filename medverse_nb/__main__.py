"""`python -m medverse_nb` is `medverse-nb`."""

from .cli import main

main()
