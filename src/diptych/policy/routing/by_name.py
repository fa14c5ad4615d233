"""All routing policies by the names that users give them (`--routing`)."""

from collections.abc import Mapping

from diptych.core.control import RoutingName
from diptych.policy.routing.baselines import at_random, least_loaded, round_robin
from diptych.policy.routing.kv_centric import kv_centric, prefix_local
from diptych.policy.routing.overlap_load import overlap_load
from diptych.policy.routing.predicted import predicted
from diptych.policy.routing.question import RoutingPolicy

POLICIES: Mapping[RoutingName, RoutingPolicy] = {
    "predicted": predicted,
    "random": at_random,
    "round-robin": round_robin,
    "least-loaded": least_loaded,
    "prefix-local": prefix_local,
    "kv-centric": kv_centric,
    "overlap-load": overlap_load,
}
