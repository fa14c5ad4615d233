"""Lengths of the first hundred chats that DistServe's authors served, and loads made of them.

Prompt and answer tokens of `simdistserve/benchmarks/alignment/data-ground-truth/opt-13b-sharegpt-workload/` in the
repository LLMServe/DistServe (Apache-2.0): samples of ShareGPT, cut to OPT's context of 2,048 tokens.
"""

from itertools import islice

import numpy as np

from diptych.planner.load import BLOCK_SIZE
from diptych.sim.prompts import OfferedRequest
from diptych.workload.arrivals import Arrivals

CHATS = (
    *((55, 4), (829, 170), (697, 431), (1316, 9), (56, 235), (1730, 216), (1717, 36), (907, 13), (1420, 4)),
    *((415, 210), (67, 21), (1010, 61), (377, 301), (345, 7), (1699, 126), (1728, 2), (323, 545), (1043, 247)),
    *((1835, 13), (1478, 162), (1187, 295), (596, 12), (1589, 8), (1455, 29), (370, 3), (347, 169), (553, 327)),
    *((668, 52), (768, 437), (994, 303), (865, 468), (432, 45), (799, 14), (1665, 46), (1421, 36), (1238, 227)),
    *((1348, 23), (1608, 10), (849, 34), (1147, 68), (1336, 171), (1516, 33), (641, 6), (37, 248), (1357, 32)),
    *((760, 188), (1665, 50), (143, 133), (164, 258), (586, 478), (337, 5), (345, 14), (10, 71), (511, 9)),
    *((558, 425), (21, 9), (575, 609), (773, 149), (989, 42), (584, 521), (650, 20), (964, 18), (2003, 26)),
    *((1022, 58), (235, 20), (15, 285), (192, 23), (1208, 786), (165, 16), (125, 36), (852, 247), (1513, 12)),
    *((476, 199), (1170, 523), (397, 21), (519, 34), (1190, 15), (26, 894), (492, 13), (1451, 255), (495, 4)),
    *((1013, 527), (456, 287), (955, 291), (1347, 481), (875, 6), (891, 293), (1904, 34), (1487, 2), (1098, 24)),
    *((630, 12), (839, 2), (1512, 279), (566, 177), (279, 266), (733, 445), (1225, 3), (461, 205), (914, 530)),
    (794, 98),
)


def offered_chats(rate_per_s: float, num_requests: int, seed: int) -> list[OfferedRequest]:
    """Return Poisson arrivals of these lengths, in an order of chance; nothing is shared."""
    generator = np.random.default_rng([seed, len(CHATS)])
    numbers = np.concatenate([generator.permutation(len(CHATS)) for _ in range(-(-num_requests // len(CHATS)))])
    offered: list[OfferedRequest] = []
    next_block = 0
    for arrival_s, number in zip(islice(Arrivals(rate_per_s).times_s(seed), num_requests), numbers, strict=False):
        num_prompt, num_output = CHATS[int(number)]
        num_blocks = -(-num_prompt // BLOCK_SIZE)
        offered.append(
            OfferedRequest(arrival_s, num_prompt, num_output, tuple(range(next_block, next_block + num_blocks)))
        )
        next_block += num_blocks
    return offered
