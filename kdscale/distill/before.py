"""The student before its first step, kept so that the evaluation can score it.

A loaded model that is trained as it is needs no copy: the folder then refers to it.
"""

from dataclasses import dataclass

from kdscale.config.student import StudentConfig
from kdscale.data.rows.prepared import Prepared
from kdscale.distill.student_init import StudentInit
from kdscale.distributed.rank import Rank
from kdscale.models.hf_folder import publish, read_marker, write_reference
from kdscale.models.load import count_parameters
from kdscale.store import Fence, Store

_NAME = "before"


@dataclass(frozen=True)
class BeforeJob:
    """Name and place of the student before training."""

    fingerprint: str
    output: Store
    fence: Fence | None = None

    def is_complete(self) -> bool:
        """Return whether it is there already, for example before a restart."""
        found = read_marker(self.output.child(_NAME))
        return found is not None and found.fingerprint == self.fingerprint

    def keep(
        self, student: StudentConfig, start: StudentInit, prepared: Prepared, worker: Rank
    ) -> None:
        """Write the model `start`, or a reference to where it is. Collective."""
        if worker.rank == 0:
            if self.fence is not None:
                self.fence.check()
            if start.is_stored:
                assert student.load is not None
                store = self.output.child(_NAME)
                write_reference(store, student.load, student.revision, self.fingerprint)
            else:
                self._publish(start, prepared)
        worker.barrier()

    def _publish(self, start: StudentInit, prepared: Prepared) -> None:
        model = start.build()
        publish(
            self.output,
            _NAME,
            export=model.save_pretrained,
            tokenizer=prepared.tokenizer_folder(),
            fingerprint=self.fingerprint,
            parameters=count_parameters(model),
        )
