"""The decode worker's part of a step: who takes part, with how many tokens, and which of its logits are whose."""

from diptych.core.ids import RequestId
from diptych.engine.base import Logits, Row
from diptych.worker.memory import StepPart
from diptych.worker.sampling.logprobs import chunk_logprobs
from diptych.worker.sequence import Sequence


class Batch:
    """Sequences of one step, each with the number of tokens that it computes."""

    def __init__(self, members: list[tuple[Sequence, int]]) -> None:
        self.members = members
        self.parts = [_part(sequence, num_tokens) for sequence, num_tokens in members]
        self.sampled: list[Sequence] = []
        """Those whose last known token is computed: their logits give a new one."""
        self.last_row: dict[Sequence, int] = {}
        """Where in the step's logits a sequence's last token is, for those that want any."""
        num_rows = 0
        for (sequence, _), part in zip(members, self.parts, strict=True):
            if part.row.num_logits:
                num_rows += part.row.num_logits
                self.last_row[sequence] = num_rows - 1
            if _end(part.row) == len(sequence.token_ids):
                self.sampled.append(sequence)

    def __contains__(self, sequence: Sequence) -> bool:
        return any(sequence is member for member, _ in self.members)

    def keep_prompt_logprobs(self, logits: Logits) -> None:
        """Let sequences that want the log-probabilities of their prompts keep those that the step has brought."""
        for (sequence, _), part in zip(self.members, self.parts, strict=True):
            num_top = sequence.request.sampling.num_prompt_logprobs
            if num_top is not None and sequence.wants_prompt_logprobs:
                first_row = self.last_row[sequence] + 1 - part.row.num_logits
                rows = logits[first_row : first_row + part.row.num_logits]
                sequence.prompt_logprobs += chunk_logprobs(rows, sequence.token_ids, part.row.num_past_tokens, num_top)

    def drop(self, request_id: RequestId) -> None:
        """Forget the sequences of a request that has failed."""
        self.members = [(sequence, size) for sequence, size in self.members if sequence.request_id != request_id]
        self.sampled = [sequence for sequence in self.sampled if sequence.request_id != request_id]


def _part(sequence: Sequence, num_tokens: int) -> StepPart:
    begin = sequence.num_computed_tokens
    tokens = sequence.token_ids[begin : begin + num_tokens]
    reaches_end = begin + num_tokens == len(sequence.token_ids)
    num_logits = num_tokens if sequence.wants_prompt_logprobs else int(reaches_end)
    row = Row(tokens, begin, sequence.block_table, num_logits)
    return StepPart(row, sequence.request_id, sequence.epoch, sequence.shared_epochs)


def _end(row: Row) -> int:
    return row.num_past_tokens + len(row.token_ids)
