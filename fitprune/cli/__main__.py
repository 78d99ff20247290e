"""`python -m fitprune.cli`, as `fitprune`."""

from . import main

raise SystemExit(main())
