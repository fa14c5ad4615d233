"""A simulated worker as one that reads prompts into blocks of others (worker/prefill.py is the live one).

Where the owner is on another machine, the prompt's KV has to get there: as the link lets it, chunk by chunk while the
rest is computed, or all at once behind it. The router hears the first token when it is there; the owner goes on when
the KV is.
"""

from diptych.core.messages import Filled, Grant, GrantEnded, PeerAddress, Revoke
from diptych.core.request import SampledToken
from diptych.sim.links import Transfer
from diptych.sim.remains import Granted
from diptych.sim.report import TOKEN_ID, WorkerReport
from diptych.sim.run import Run
from diptych.sim.sequence import Prompt
from diptych.sim.stepper import Stepper
from diptych.sim.surroundings import Surroundings


class PromptReader:
    """Grants of one life of a worker, first come, first served."""

    def __init__(self, address: PeerAddress, steps: Stepper, report: WorkerReport, around: Surroundings) -> None:
        self._address = address
        self._steps = steps
        self._report = report
        self._around = around
        self._transfers: dict[tuple[PeerAddress, int], tuple[Transfer, float]] = {}
        """KV on its way, by owner and epoch, and since when."""
        self._revoked: list[Revoke] = []
        """While a step reads their prompts."""
        self._gone: set[PeerAddress] = set()
        self._is_dead = False

    def on_message(self, message: Grant | Revoke) -> None:
        """Take up a grant, or give one back."""
        match message:
            case Grant(decode=owner):
                if owner in self._gone:
                    return
                num_tokens = len(message.prompt_token_ids)
                prompt = Prompt(message.arrived_s, num_tokens, message.num_cached_tokens, None, message)
                prompt.num_sent = message.num_cached_tokens
                self._steps.add(prompt)
            case Revoke(decode=owner, epoch=epoch):
                run = self._steps.run
                self._drop(owner, epoch)
                if run is not None and any(_is_of(prompt, owner, epoch) for prompt, _ in run.chunks):
                    self._revoked.append(message)
                else:
                    self._end(message)

    def _drop(self, owner: PeerAddress, epoch: int) -> None:
        self._steps.drop_prompts(lambda prompt: _is_of(prompt, owner, epoch))
        transfer = self._transfers.pop((owner, epoch), None)
        if transfer is not None and self._around.links is not None:
            self._around.links.cancel(transfer[0])

    def _end(self, revoke: Revoke) -> None:
        self._tell(revoke.decode, GrantEnded(request_id=revoke.request_id, epoch=revoke.epoch, reason="revoked"))

    def _tell(self, owner: PeerAddress, message: GrantEnded | Filled) -> None:
        if owner not in self._gone:
            self._around.network.send(owner.endpoint, message)

    def on_gone(self, owner: PeerAddress) -> None:
        """Forget what a worker has granted that is dead."""
        self._gone.add(owner)
        grants = [prompt.granted for prompt in self._steps.prompts if prompt.granted is not None]
        epochs = {grant.epoch for grant in grants if grant.decode == owner}
        for epoch in epochs | {epoch for peer, epoch in self._transfers if peer == owner}:
            self._drop(owner, epoch)

    def die(self) -> dict[Granted, int]:
        """End at once; return how far each granted prompt had been read into memory that outlives this worker."""
        self._is_dead = True
        read: dict[Granted, int] = {}
        for prompt in self._steps.prompts:
            grant = prompt.granted
            if grant is not None and self._around.is_beside(grant.decode.worker_id):
                read[grant.decode, grant.epoch] = min(prompt.num_read, prompt.num_tokens - 1)
        for owner, epoch in list(self._transfers):
            self._drop(owner, epoch)
        return read

    def on_progress(self, prompt: Prompt, run: Run) -> None:
        """Go on after steps that have read a part of a prompt."""
        grant = prompt.granted
        assert grant is not None
        if prompt not in self._steps.prompts:
            for revoke in [one for one in self._revoked if _is_of(prompt, one.decode, one.epoch)]:
                self._revoked.remove(revoke)
                self._end(revoke)
            return
        if prompt.num_left == 0:
            self._steps.prompts.remove(prompt)
        num_read = prompt.num_read
        if run.latency_s:
            self._around.time.call_in(run.latency_s, lambda: self._on_through(prompt, grant, num_read))
        else:
            self._on_through(prompt, grant, num_read)

    def _on_through(self, prompt: Prompt, grant: Grant, num_read: int) -> None:
        """Go on after a chunk that is through the pipeline; up to `num_read` the prompt has been read."""
        if self._is_dead or grant.decode in self._gone:
            return
        is_last = num_read == prompt.num_tokens
        if is_last and grant.choices:
            self._report.add_first(grant)
            self._report.send()
            self._around.tell("first_token", grant.request_id, self._address.worker_id)
        if not self._around.is_beside(grant.decode.worker_id):
            self._send(prompt, grant, num_read, is_last=is_last)
        elif is_last:
            self._fill(prompt, grant)

    def _send(self, prompt: Prompt, grant: Grant, num_read: int, *, is_last: bool) -> None:
        links = self._around.links
        assert links is not None
        if not (is_last or links.does_overlap):
            return
        key = grant.decode, grant.epoch
        if key not in self._transfers:
            target = self._around.machine_of[grant.decode.worker_id]
            transfer = links.open(self._around.machine.name, target, lambda: self._on_arrival(prompt, grant))
            self._transfers[key] = transfer, self._around.time.now_s()
        num_tokens = num_read - prompt.num_sent
        prompt.num_sent = num_read
        links.send(self._transfers[key][0], num_tokens, is_last=is_last)

    def _on_arrival(self, prompt: Prompt, grant: Grant) -> None:
        entry = self._transfers.pop((grant.decode, grant.epoch), None)
        if entry is not None and not self._is_dead:
            self._around.tell_sent(grant, self._address.worker_id, begin_s=entry[1])
            self._fill(prompt, grant)

    def _fill(self, prompt: Prompt, grant: Grant) -> None:
        """Tell the owner that its blocks are filled."""
        assert prompt.started_s is not None
        filled = Filled(
            request_id=grant.request_id,
            epoch=grant.epoch,
            first_tokens=[SampledToken(TOKEN_ID)] if grant.choices else [],
            prompt_logprobs=None,
            prefill_started_s=prompt.started_s,
            first_token_s=self._around.time.now_s(),
        )
        self._tell(grant.decode, filled)


def _is_of(prompt: Prompt, owner: PeerAddress, epoch: int) -> bool:
    grant = prompt.granted
    return grant is not None and grant.epoch == epoch and grant.decode == owner
