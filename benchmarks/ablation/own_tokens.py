"""A corpus in the tokens of a student with its own tokenizer, and two rivals' ways to its targets.

Rivals: A maps the teacher's ids to the student's one by one, where both next tokens span the same
bytes. P-KL is the loss of NVIDIA NeMo-RL's guide to cross-tokenizer distillation: the student's
probabilities, times a matrix from its ids to the teacher's, are compared with the teacher's over
chunks between two common boundaries, beside the cross-entropy. Its teacher is averaged here by an
arithmetic mean, which samples leave unbiased, in place of a mean of logarithms over one top-k a
micro-batch; rows of the matrix spread a token's weight evenly over the teacher's pieces, 1 for an
exact match.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.ablation.corpus import Corpus
from kdscale.data.token_bytes import TokenBytes
from kdscale.data.tokenizer import TOKENIZER_FILE, TokenizerInfo, adopt_tokenizer
from kdscale.distill.alignment import Aligner, TokenizerPair
from kdscale.distill.batches import MicroBatch
from kdscale.losses.classes import ClassMap
from kdscale.models.forward import row_tensors
from kdscale.models.head import ModelWithHead
from kdscale.train.loop import MicroBatchLoss
from kdscale.types import DenseTargets, Rows, SparseTargets

_PIECES = 4  # teacher ids of a student's token, at most


@dataclass(frozen=True)
class OwnTokens:
    """Rows of a student, row by row the text of a corpus."""

    rows: Rows
    source: np.ndarray  # [R, T_s] int32: as AlignedRows has it
    chunks: np.ndarray
    """[R, T_s] int32: the chunk of each target between two common boundaries; -1: none."""

    teacher_chunks: np.ndarray  # [R, T] int32: the same of the teacher's targets
    pair: TokenizerPair

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def vocab_size(self) -> int:
        return self.pair.student.vocab_size

    @property
    def target_share(self) -> float:
        return float((self.source >= 0)[self.rows.loss_mask].mean())


def read_tokens(folder: Path, scratch: Path) -> TokenBytes:
    """Return the tokenizer in a Hugging Face folder."""
    info: TokenizerInfo = adopt_tokenizer(folder, scratch, owner="model")
    return TokenBytes.of(scratch / TOKENIZER_FILE, info)


def in_own_tokens(corpus: Corpus, pair: TokenizerPair) -> OwnTokens:
    """Return `corpus` in the student's tokens, nothing of it cut."""
    longest = int(pair.teacher.lengths[corpus.rows.input_ids].sum(axis=1).max()) + 1
    made = Aligner(pair, longest).convert(corpus.rows)
    length = int((made.rows.segment_ids > 0).sum(axis=1).max())
    rows = made.rows
    cut = Rows(
        rows.sample_ids,
        rows.input_ids[:, :length],
        rows.segment_ids[:, :length],
        rows.loss_mask[:, :length],
        rows.byte_counts,
    )
    mine, theirs = _units(cut, pair.student), _units(corpus.rows, pair.teacher)
    chunks = [_chunks(cut, mine, corpus.rows, theirs, row) for row in range(len(cut))]
    own, teachers = (np.stack(each) for each in zip(*chunks, strict=True))
    return OwnTokens(cut, made.source[:, :length], own, teachers, pair)


def target_bytes(rows: Rows, tokens: TokenBytes) -> int:
    """Return the bytes of the targets' text."""
    labels = np.roll(rows.input_ids, -1, axis=1)[rows.loss_mask]
    return int(tokens.lengths[labels].sum())


def _units(rows: Rows, tokens: TokenBytes) -> np.ndarray:
    """Return the unit behind every token of a row, [R, T] int64; see `alignment.aligner`."""
    lengths = np.where(tokens.is_special[rows.input_ids], 1, tokens.lengths[rows.input_ids])
    found: np.ndarray = np.cumsum(lengths * (rows.segment_ids > 0), axis=1)
    return found


def _chunks(
    mine: Rows, ends: np.ndarray, theirs: Rows, their_ends: np.ndarray, row: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the chunk of each position's label, [T_s] and [T] int32; -1 where none counts."""
    common = np.intersect1d(
        ends[row][mine.segment_ids[row] > 0], their_ends[row][theirs.segment_ids[row] > 0]
    )
    found = []
    for rows, behind in ((mine, ends[row]), (theirs, their_ends[row])):
        # Position i predicts token i + 1, which ends at behind[i + 1].
        label_ends = np.roll(behind, -1)
        chunk = np.searchsorted(common, label_ends, side="left")
        found.append(np.where(rows.loss_mask[row], chunk, -1).astype(np.int32))
    both = np.intersect1d(found[0], found[1])
    own, teachers = (np.where(np.isin(each, both), each, -1) for each in found)
    return own, teachers


def one_by_one(pair: TokenizerPair, device: torch.device) -> ClassMap:
    """Return the map of A: a teacher's id becomes the student's first token of its bytes."""
    student, teacher = pair.student, pair.teacher
    numbers = np.flatnonzero(~teacher.is_special)
    ids, counts = student.encode([teacher.of_id(int(number)) for number in numbers])
    first = np.where(pair.counterparts >= 0, pair.counterparts, -1)
    first[numbers] = ids[np.cumsum(counts) - counts]
    every = torch.arange(student.vocab_size)
    return ClassMap.of(torch.from_numpy(first), every, student.vocab_size, device)


def equal_spans(own: OwnTokens, corpus: Corpus) -> np.ndarray:
    """Return [R, T_s] bool: where both next tokens span the same bytes."""
    pair, source = own.pair, np.maximum(own.source, 0)
    theirs = np.take_along_axis(np.roll(corpus.rows.input_ids, -1, axis=1), source, axis=1)
    mine = np.roll(own.rows.input_ids, -1, axis=1)
    same: np.ndarray = pair.student.lengths[mine] == pair.teacher.lengths[theirs]
    return same & (own.source >= 0)


def projection(pair: TokenizerPair) -> torch.Tensor:
    """Return the matrix of P-KL, from the student's ids to the teacher's: [V_S, V_T] sparse."""
    student, teacher = pair.student, pair.teacher
    numbers = np.flatnonzero(~student.is_special)
    ids, counts = teacher.encode([student.of_id(int(number)) for number in numbers])
    kept = np.minimum(counts, _PIECES)
    starts = np.cumsum(counts) - counts
    columns = np.concatenate([ids[s : s + n] for s, n in zip(starts, kept, strict=True)])
    rows = np.repeat(numbers, kept)
    weights = np.repeat(1 / kept, kept)
    special = np.flatnonzero(pair.counterparts >= 0)
    rows = np.concatenate([rows, pair.counterparts[special]])
    columns = np.concatenate([columns, special])
    weights = np.concatenate([weights, np.ones(len(special))])
    places = torch.from_numpy(np.stack([rows, columns]))
    shape = (student.vocab_size, teacher.vocab_size)
    return torch.sparse_coo_tensor(places, torch.from_numpy(weights).float(), shape).coalesce()


@dataclass(frozen=True)
class ChunkBatch:
    """A micro-batch of P-KL: the student's rows, and the teacher's payload by chunk."""

    rows: MicroBatch
    chunks: torch.Tensor  # [P_s] int64: of the student's targets; -1: none
    payload: torch.Tensor  # [P_t, bytes] uint8: of the teacher's targets in a chunk
    teacher_chunks: torch.Tensor  # [P_t] int64


def chunk_batch(own: OwnTokens, payload: np.ndarray, part: np.ndarray) -> ChunkBatch:
    """Return the rows at `part` [m], chunks numbered over all of them."""
    rows = row_tensors(own.rows.take(part), torch.device("cpu"))
    # Numbers of different rows apart.
    apart = (1 + max(own.chunks.max(), own.teacher_chunks.max())) * np.arange(len(part))[:, None]
    mine, theirs = (
        np.where(each[part] >= 0, each[part] + apart, -1)
        for each in (own.chunks, own.teacher_chunks)
    )
    names, theirs_dense = np.unique(theirs[theirs >= 0], return_inverse=True)
    mine = mine[own.rows.loss_mask[part]]
    mine = np.where(mine >= 0, np.searchsorted(names, mine), -1)
    empty = torch.zeros(*rows.ids.shape, 0, dtype=torch.uint8)
    return ChunkBatch(
        MicroBatch(rows, empty, None),
        torch.from_numpy(mine).long(),
        torch.from_numpy(payload[part][theirs >= 0]),
        torch.from_numpy(theirs_dense).long(),
    )


class ChunkLoss:
    """P-KL beside cross-entropy, in equal parts."""

    def __init__(self, codec: object, matrix: torch.Tensor) -> None:
        self._codec = codec
        self._transposed = matrix.t().coalesce()

    def __call__(self, model: ModelWithHead, batch: ChunkBatch, step: int) -> MicroBatchLoss:
        """Return the sums over the batch's targets."""
        rows = batch.rows.rows
        hidden = model.hidden(rows.ids, rows.segments)[rows.mask]
        log_q = model.head.logits(hidden).log_softmax(-1)
        labels = rows.labels[rows.mask]
        cross_entropy = -log_q.gather(-1, labels[:, None]).sum()
        loss = 0.5 * cross_entropy + 0.5 * self._chunks(log_q, batch)
        return loss, {"loss": loss.detach()}

    def _chunks(self, log_q: torch.Tensor, batch: ChunkBatch) -> torch.Tensor:
        """Return the sum over chunks, each as often as it has targets of the student."""
        count = int(batch.teacher_chunks.max()) + 1
        inside = batch.chunks >= 0
        numbers = batch.chunks[inside]
        sizes = torch.bincount(numbers, minlength=count).clamp_min(1)[:, None]
        mean_q = torch.zeros(count, log_q.shape[1]).index_add(0, numbers, log_q[inside].exp())
        projected = torch.sparse.mm(self._transposed, (mean_q / sizes).T).T
        target = self._mean_p(batch, count, projected.shape[1])
        each = -(target * projected.clamp_min(1e-12).log()).sum(-1)
        return (each * sizes[:, 0]).sum()

    @torch.no_grad()
    def _mean_p(self, batch: ChunkBatch, count: int, vocab_size: int) -> torch.Tensor:
        """Return the arithmetic mean of the teacher's distributions over each chunk, [C, V_T]."""
        found = self._codec.decode(batch.payload)  # type: ignore[attr-defined]
        target = torch.zeros(count, vocab_size)
        if isinstance(found, DenseTargets):
            target.index_add_(0, batch.teacher_chunks, found.log_probs.exp())
        else:
            assert isinstance(found, SparseTargets)
            places = batch.teacher_chunks[:, None].expand_as(found.ids)
            target.index_put_((places, found.ids), found.probs, accumulate=True)
        sizes = torch.bincount(batch.teacher_chunks, minlength=count)
        return target / sizes[:, None]
