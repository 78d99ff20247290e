"""`python -m fitprune` is the `fitprune` command."""

from .cli import main

raise SystemExit(main())
