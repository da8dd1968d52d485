"""Many servers and many inputs on a Ray cluster (`pip install 'isthmus[ray]'`).

Ray places, and nothing depends on where: an agent belongs to the store, which says who owns it. A
replica that is lost, or a request that goes to the wrong one, costs time and never an agent.
"""

from isthmus.ray.mapping import Workers
from isthmus.ray.mapping import map_inputs as map  # noqa: A004 - as isthmus.ray.map
from isthmus.ray.serving import Scale, application

__all__ = ["Scale", "Workers", "application", "map"]
