"""The server by the name that it had first: what `fitprune.web.serve` and `fitprune.web.turns` have, for scripts that import it from here.

python -c "from fitprune.serve import picture, server"
"""

from .web.serve import server
from .web.turns import image_of as picture

__all__ = ["picture", "server"]
