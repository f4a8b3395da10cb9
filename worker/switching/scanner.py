"""A thread that keeps the catalog up to date."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import structlog

from worker.switching.catalog import Catalog, Offered
from worker.switching.describer import Describer, DescriberError

log = structlog.get_logger(__name__)

#: How often the folder is scanned, in seconds.
SCAN_S = 1.0


class Scanner:
    """Scans once a second, and describes what is new in the process of the describer."""

    def __init__(self, catalog: Catalog, describer: Describer, on_change: Callable[[], None]) -> None:
        """`on_change` is called in the thread when `offers` has changed."""
        self._catalog = catalog
        self._describer = describer
        self._on_change = on_change
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scanner", daemon=True)
        #: What can be loaded, by name. A new mapping at every change.
        self.offers: Mapping[str, Offered] = {}

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop scanning. Does not wait for a scan that is in progress."""
        self._stopping.set()

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stopping.wait(wait_s):
            more = False
            try:
                more = self._catalog.scan()
            except DescriberError as error:
                log.error("describer_failed", reason=str(error))
            offers = self._catalog.offers()
            if offers != self.offers:
                self.offers = offers
                self._on_change()
            self._describer.rest()
            wait_s = 0.0 if more else SCAN_S
        self._describer.stop()
