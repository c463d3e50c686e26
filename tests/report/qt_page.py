"""Opens a page in Qt's Chromium, which comes as a Python package, and prints what a script of the test says there.

Usage: python qt_page.py WIDTH PAGE SCRIPT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ |= {"QT_QPA_PLATFORM": "offscreen", "QTWEBENGINE_CHROMIUM_FLAGS": "--no-sandbox --disable-gpu"}

from PyQt6.QtCore import QTimer, QUrl
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication

WAIT = 500
"""Milliseconds that a page gets to lay itself out."""


def main() -> None:
    width, page, script = sys.argv[1:]
    application = QApplication(sys.argv[:1])
    view = QWebEngineView()
    view.resize(int(width), 900)
    view.show()

    def answer(said: object) -> None:
        print(said, flush=True)
        os._exit(0)  # Qt's own end may take long, or fail

    def ask() -> None:
        view.page().runJavaScript(script, answer)

    view.loadFinished.connect(lambda loaded: QTimer.singleShot(WAIT, ask))
    view.load(QUrl.fromLocalFile(str(Path(page).resolve())))
    application.exec()


if __name__ == "__main__":
    main()
