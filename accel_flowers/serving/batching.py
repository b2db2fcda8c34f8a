"""Pictures that arrive together go through the network together.

Pictures are decoded in a few threads. One thread owns the network: it takes all that is decoded, up to a number, and where there
is room waits a few milliseconds for those that are being decoded; a lone picture waits for nobody. What nobody waits for any
more is not computed. How many pictures are under way is bounded: beyond, a request is refused at once instead of being late.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from accel_flowers.core.out_of_memory import is_lack_of_memory
from accel_flowers.core.plural import number_of
from accel_flowers.data.decoding.pillow import BadImageError
from accel_flowers.inference.prediction import Prediction
from accel_flowers.serving.limits import Limits
from accel_flowers.serving.metrics import Metrics
from accel_flowers.serving.refusals import Refused
from accel_flowers.serving.subject import Subject
from accel_flowers.serving.uploads import Upload

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Said:
    """What is said of a picture, and the address of a picture (`data:`) of where the network looked, if that was asked for."""

    prediction: Prediction
    heatmap: str | None = None


class Asked:
    """A request's pictures.

    Args:
        names: of the pictures.
        top_k: classes to tell of each, as of `answer_of`.
        heatmap: whether to show where the network looked.
        answers: where all that is said comes out, in the pictures' order.
    """

    def __init__(
        self, names: Sequence[str], *, top_k: int | None, heatmap: bool, answers: asyncio.Future[list[Said]]
    ) -> None:
        self.names, self.top_k, self.heatmap, self.answers = names, top_k, heatmap, answers
        self.gone = False
        """Whether nobody waits any more."""
        self._said: list[Said | None] = [None] * len(names)
        self._left = len(names)

    def settle(self, place: int, said: Said | BaseException) -> None:
        """Take what is said of one picture; in the event loop's thread."""
        if self.answers.done():
            return
        if isinstance(said, BaseException):
            self.answers.set_exception(said)
            return
        self._said[place] = said
        self._left -= 1
        if not self._left:
            self.answers.set_result([each for each in self._said if each is not None])


@dataclass(eq=False)
class _Picture:
    """One of them on its way."""

    asked: Asked
    place: int
    pixels: Any = None
    """As the model reads it, once it is decoded."""


class Batcher:
    """The way of pictures through decoding and the network.

    Args:
        subject: what is asked.
        limits: bounds of the batches and of what is under way.
        metrics: where it is counted.
        num_workers: threads that decode.
        loop: where answers are waited for.
    """

    def __init__(
        self,
        subject: Subject,
        limits: Limits,
        metrics: Metrics,
        *,
        num_workers: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._model, self._limits, self._metrics, self._loop = subject.model, limits, metrics, loop
        self._heat = subject.heat
        self._decoders = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
        self._news = threading.Condition()
        self._ready: deque[_Picture] = deque()
        self._num_decoding = 0
        self._stopped = False
        self._num_under_way = 0
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def num_under_way(self) -> int:
        """Pictures that are decoded, wait, or are in the network."""
        return self._num_under_way

    @property
    def alive(self) -> bool:
        """Whether it can answer."""
        return self._thread.is_alive() and not self._stopped

    def ask(self, uploads: Sequence[Upload], *, top_k: int | None, heatmap: bool) -> Asked:
        """Send pictures on their way; in the event loop's thread.

        Raises:
            Refused: there are too many under way.
        """
        if self._num_under_way + len(uploads) > self._limits.max_queue:
            raise Refused(
                429,
                "queue_full",
                f"{number_of(self._num_under_way, 'picture is', many='pictures are')} under way, and no more than "
                f"{self._limits.max_queue} may be: ask again in a second.",
                retry_after=1,
            )
        asked = Asked(
            [upload.name for upload in uploads], top_k=top_k, heatmap=heatmap, answers=self._loop.create_future()
        )
        self._num_under_way += len(uploads)
        with self._news:
            self._num_decoding += len(uploads)
        for place, upload in enumerate(uploads):
            self._decoders.submit(self._decode, _Picture(asked, place), upload)
        return asked

    def stop(self) -> None:
        """Answer what is under way, then end."""
        self._decoders.shutdown()
        with self._news:
            self._stopped = True
            self._news.notify_all()
        self._thread.join()

    # In the threads that decode

    def _decode(self, picture: _Picture, upload: Upload) -> None:
        said: Said | BaseException | None = None
        try:
            if not picture.asked.gone:
                picture.pixels = self._model.read(upload.data, upload.name)
        except BadImageError as error:
            said = Said(Prediction(upload.name, error=error.cause))
        except Exception as error:  # noqa: BLE001 - of one picture: told in the log, and the server goes on
            said = _as_refusal(error)
        with self._news:
            self._num_decoding -= 1
            if picture.pixels is not None:
                self._ready.append(picture)
            self._news.notify()
        if said is not None:
            self._deliver([(picture, said)])
        elif picture.pixels is None:
            self._deliver([(picture, None)])

    # In the network's thread

    def _work(self) -> None:
        while batch := self._next_batch():
            wanted = [picture for picture in batch if not picture.asked.gone]
            said: list[Said] | BaseException
            try:
                said = self._say(wanted) if wanted else []
            except Exception as error:  # noqa: BLE001 - of one batch: told in the log, and the server goes on
                said = _as_refusal(error)
            answers: dict[_Picture, Any] = dict(
                zip(wanted, said if isinstance(said, list) else [said] * len(wanted), strict=True)
            )
            self._deliver([(picture, answers.get(picture)) for picture in batch])

    def _next_batch(self) -> list[_Picture]:
        """Wait for pictures; none when there will be no more."""
        with self._news:
            while not self._ready:
                if self._stopped:
                    return []
                self._news.wait()
            until = time.monotonic() + self._limits.batch_seconds
            while len(self._ready) < self._limits.max_batch and self._num_decoding:
                left = until - time.monotonic()
                if left <= 0 or not self._news.wait(left):
                    break
            return [self._ready.popleft() for _ in range(min(len(self._ready), self._limits.max_batch))]

    def _say(self, batch: Sequence[_Picture]) -> list[Said]:
        begun = time.perf_counter()
        model = self._model
        num_classes = len(model.spec.class_names)
        most = max(num_classes if model.spec.several_labels else picture.asked.top_k or 1 for picture in batch)
        pixels = [picture.pixels for picture in batch if picture.pixels is not None]
        found = model.probabilities(pixels)
        places = np.argsort(-found, axis=1, kind="stable")[:, :most]
        values = np.take_along_axis(found, places, axis=1)
        said = []
        for picture, probabilities, labels in zip(batch, values.tolist(), places.tolist(), strict=True):
            told = list(zip(labels, probabilities, strict=True))
            asked = picture.asked
            heatmap = None
            if asked.heatmap and self._heat is not None and picture.pixels is not None and not asked.gone:
                heatmap = self._heat(picture.pixels, labels[0])
            said.append(Said(model.answer(asked.names[picture.place], told, asked.top_k), heatmap))
        self._metrics.batch_pictures.observe(len(batch))
        self._metrics.batch_seconds.observe(time.perf_counter() - begun)
        return said

    # From both to the event loop

    def _deliver(self, said: Sequence[tuple[_Picture, Said | BaseException | None]]) -> None:
        """Hand over what became of pictures; None = nobody waits for it."""
        for picture, _ in said:
            picture.pixels = None
        try:
            self._loop.call_soon_threadsafe(self._settle, said)
        except RuntimeError:
            return  # the loop has ended: nobody waits

    def _settle(self, said: Sequence[tuple[_Picture, Said | BaseException | None]]) -> None:
        self._num_under_way -= len(said)
        for picture, each in said:
            if each is None or picture.asked.gone:
                self._metrics.picture("abandoned")
                continue
            if isinstance(each, Said):
                self._metrics.picture("answered" if each.prediction.error is None else "unreadable")
            picture.asked.settle(picture.place, each)


def _as_refusal(error: Exception) -> Refused:
    """What a client is told of an error that is none of its own."""
    if is_lack_of_memory(error):
        _log.error("there is not enough memory for a batch: leave more free, or serve with a smaller --max-batch")
        return Refused(503, "memory", "The server has not enough memory for this now: ask again later.", retry_after=5)
    _log.error("".join(traceback.format_exception(error)).rstrip())
    return Refused(500, "internal", "The server failed; its log says why.")
