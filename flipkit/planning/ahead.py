"""Plans ahead: a row for each variant of a run on a topology, and the largest batch that fits."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from flipkit.errors import ConfigurationError
from flipkit.planning import forecast, formula, search, variants
from flipkit.planning.kept import Kept
from flipkit.planning.program import Lowered
from flipkit.planning.search import Tried
from flipkit.planning.topology import Topology
from flipkit.planning.variants import Variant

RATIOS = (0.0, 0.5, 0.75)  # those of the paper's Table 1a
TRIES = 5  # compiles in search of the largest batch


class Ahead:
    """Plans a phase of a run on a topology; compiles its step for each variant, once.

    Args:
        run: `flipkit.Run`.
        topology: `flipkit.planning.topology.Topology`.
        index: of the phase.
        mesh: parts of each batch x parts of each block; None is the run's own.
        utilisation: share of the chips' peak FLOP/s that products reach.
        price: of a chip for an hour.
        cache: whether results of compiles are kept on disk, and taken from there.
        waiting: called with what is being compiled and a function that compiles; returns what the
            function returns, and may show the progress.
    """

    def __init__(
        self,
        run,
        topology: Topology,
        *,
        index=0,
        mesh=None,
        utilisation=forecast.UTILISATION,
        price=None,
        cache=True,
        waiting: Callable[[str, Callable[[], Any]], Any] = lambda label, work: work(),
    ):
        if not 0 <= index < len(run.phases):
            last = len(run.phases) - 1
            raise ConfigurationError(f"Expected a phase from 0 to {last}. Received: {index}")
        if mesh is not None:
            layout = run.distribution or "data_parallel"
            run = run.with_overrides({"distribution": layout, "mesh": mesh})
        self.run, self.topology, self.index = run, topology, index
        self.utilisation, self.price, self.waiting = utilisation, price, waiting
        self._kept, self._rows = Kept(cache), {}
        self._devices = None if topology.chip.platform == "gpu" else topology.devices()
        self.limit = topology.limit()

    def ratios(self) -> list[float | None]:
        """The mask ratios of the paper's table and the run's own; [None] for a model without masks."""
        own = variants.mask_ratio(self.run, self.index)
        return [None] if own is None else [*sorted({*RATIOS, own})]

    def rows(self, ratios=None, remats=None, microbatches=(None,)) -> Iterator[dict]:
        """A row for each mask ratio, remat and micro-batch.

        Args:
            ratios: None are those of `ratios()`.
            remats: names of `flipkit.planning.variants.REMATS`; None is the run's own, and where that does
                not fit the stronger ones, up to the first that fits.
            microbatches: pairs; 0 is all at once, None the run's own.
        """
        for microbatch in microbatches:
            for ratio in self.ratios() if ratios is None else ratios:
                own = (None, *variants.stronger(self.run))
                for remat in own if remats is None else remats:
                    row = self.row(Variant(ratio, remat, microbatch))
                    yield row
                    if remats is None and row["fits"]:
                        break

    def row(self, variant: Variant = Variant()) -> dict:  # noqa: B008 (it is immutable)
        """The row of a variant: what its step needs and takes, as a dict for JSON."""
        if variant not in self._rows:
            run = variants.apply(self.run, self.index, variant)
            self._rows[variant] = self._row(run)
        return self._rows[variant]

    def _row(self, run):
        phase = run.phases[self.index]
        told = {
            "phase": self.index,
            "mask_ratio": variants.mask_ratio(run, self.index),
            "remat": variants.remat(run),
            "microbatch": phase.microbatch,
            "batch_size": phase.batch_size,
        }
        shown = {name.replace("_", " "): value for name, value in told.items() if value is not None}
        label = ", ".join(
            f"{n} {v:,}" if isinstance(v, int) else f"{n} {v}" for n, v in shown.items()
        )
        begin = time.perf_counter()
        found = self._measured(run, label)
        flops = found["flops"] / self.topology.count
        sent = sum(traffic["sent"] for traffic in found["collectives"].values())
        spent = forecast.seconds(flops, sent, self.topology, self.utilisation)
        whole = forecast.whole_run(run, phase.batch_size, spent["step"], self.topology, self.price)
        memory = {"arguments": None, "temporaries": None, "peak": None, "needed": None}
        return {
            **told,
            **found,
            "memory": {**memory, **found["memory"], "limit": self.limit},
            "flops_per_device": flops,
            "bytes_sent": sent,
            "seconds": spent,
            **whole,
            "planned_in": time.perf_counter() - begin,
        }

    def _measured(self, run, label):
        if self._devices is None:
            estimated = formula.estimate(run, self.index, self.topology)
            return {**estimated, "by": "formula", "kept": False}
        lowered = Lowered(run, self.index, self._devices)
        key = self._kept.key(lowered.text, self.topology.name)
        result = self._kept.get(key)
        told = {
            "flops": lowered.flops,
            "layout": lowered.layout,
            "mesh": lowered.mesh,
            "by": "compiler",
            "kept": result is not None,
        }
        if result is None:
            begin = time.perf_counter()
            result = self.waiting(label, lowered.compile)
            result["compiled_in"] = time.perf_counter() - begin
            self._kept.put(key, result)
        memory = {"arguments": lowered.arguments, **result["memory"]}
        return {**told, **result, "memory": memory}

    def largest(self, variant: Variant = Variant()) -> dict | None:  # noqa: B008
        """The row of the largest batch that fits, compiled and not only estimated; None if none fits.

        It is within a few percent of the limit: see `flipkit.planning.search`.

        Raises:
            ConfigurationError: the topology has no limit.
        """
        if self.limit is None:
            raise ConfigurationError(
                f"A {self.topology.chip.name} has no limit of memory, so that no batch is the largest. "
                "Name a TPU or a GPU"
            )
        row = self.row(variant)
        known = {row["batch_size"]: row}
        for _ in range(TRIES):
            tried = {
                size: Tried(each["memory"]["needed"] or each["memory"]["peak"], each["fits"])
                for size, each in known.items()
            }
            size = search.next_size(tried, self.limit, row["microbatch"] or row["mesh"][0])
            if size is None:
                break
            known[size] = self.row(variant._replace(batch_size=size))
        fits = [size for size, each in known.items() if each["fits"]]
        return known[max(fits)] if fits else None
