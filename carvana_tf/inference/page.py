"""A page on which photos are dropped and masks looked at; for this machine alone."""

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from carvana_tf.data.images import encode_mask
from carvana_tf.data.names import printable
from carvana_tf.errors import UserError
from carvana_tf.failures import installed
from carvana_tf.files import write_bytes
from carvana_tf.inference.in_memory import Model
from carvana_tf.interrupt import Interrupt
from carvana_tf.masks.cutouts import encoding

HOST = "127.0.0.1"
_HOSTS = [HOST, "localhost"]
# Whatever the page's own code asks for, the browser connects to this server alone.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; "
    "form-action 'self'"
)
_SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_SSR_MODE": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
}
_TITLE = "Masks and cut-outs"


def load_gradio() -> Any:
    """Imports Gradio, which then reports nothing and shares nothing.

    Raises:
        UserError: It is not installed, or broken.
    """
    os.environ.update(_SETTINGS)
    return installed("gradio", "this page", "serve")


@contextlib.contextmanager
def uploads() -> Iterator[Path]:
    """A folder for what is uploaded and made, removed at the end; before Gradio is imported."""
    with tempfile.TemporaryDirectory(prefix="carvana_tf-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        yield Path(folder)


@contextlib.contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """A socket of this machine alone.

    Args:
        port: 0 takes a free one.

    Raises:
        UserError: The port is in use, or not ours to use.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen()
        except OSError as error:
            raise UserError(
                f"--port={port} cannot be used ({error.strerror}); choose another, or 0 for any "
                "that is free."
            ) from error
        yield listener


def serve(
    model: Model,
    listener: socket.socket,
    folder: Path,
    *,
    most_files: int,
    most_megabytes: int,
    suffix: str,
) -> None:
    """Serves the page until Ctrl-C or SIGTERM.

    Args:
        model: Predicts; it makes cut-outs.
        listener: Of `listening`.
        folder: Of `uploads`.
        most_files: Photos at once.
        most_megabytes: Of each.
        suffix: Of cut-outs, ".png" or ".webp".

    Raises:
        UserError: A package is missing.
    """
    gradio = load_gradio()
    import fastapi
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def confine(request, call_next):
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    # A page of elsewhere cannot reach this one by a name that it makes point here.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS)
    theme = gradio.themes.Base(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    gradio.mount_gradio_app(
        app,
        _layout(gradio, Answers(gradio.Error, model, folder, most_files, suffix), most_megabytes),
        path="/",
        server_name=HOST,
        footer_links=[],
        max_file_size=most_megabytes << 20,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
    )
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2)
    # uvicorn repeats the signal that ended it: SIGTERM would end this process at once.
    with contextlib.suppress(KeyboardInterrupt), Interrupt() as interrupt, interrupt.at_once():
        uvicorn.Server(config).run(sockets=[listener])


def _layout(gradio: Any, answers: "Answers", most_megabytes: int) -> Any:
    with gradio.Blocks(title=_TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown(
            f"# {_TITLE}\nDrop up to {answers.most} photos of at most {most_megabytes} MB each. "
            "They stay on this machine, and are removed when the server ends."
        )
        photos = gradio.File(label="Photos", file_count="multiple", elem_id="photos")
        status = gradio.Markdown(elem_id="status")
        gallery = gradio.Gallery(
            label="Masks and cut-outs", columns=2, object_fit="contain", format="png"
        )
        files = gradio.File(label="Download", file_count="multiple", interactive=False)
        photos.upload(
            answers.answer,
            photos,
            [status, gallery, files],
            concurrency_limit=1,
            api_visibility="private",
        )
    return page


class Answers:
    """What the page shows for photos, one after the other.

    Args:
        error: An exception whose text the page shows.
        model: Predicts; it makes cut-outs.
        folder: Where masks and cut-outs are kept.
        most: Photos at once.
        suffix: Of cut-outs, ".png" or ".webp".
    """

    def __init__(
        self, error: type[Exception], model: Model, folder: Path, most: int, suffix: str = ".png"
    ) -> None:
        self._error = error
        self._model = model
        self._folder = folder
        self.most = most
        self._suffix = suffix
        self._lock = threading.Lock()

    def answer(
        self, paths: Sequence[str] | None
    ) -> Iterator[tuple[str, list[tuple[str, str]], list[str]]]:
        """Yields a text, pictures with captions, and files to download, after each photo.

        Args:
            paths: Of the photos.
        """
        paths = paths or []
        if len(paths) > self.most:
            raise self._error(f"{len(paths)} photos are too many; give at most {self.most}.")
        lines: list[str] = []
        shown: list[tuple[str, str]] = []
        files: list[str] = []
        for number, path in enumerate(map(Path, paths), 1):
            yield "\n".join([*lines, f"- photo {number} of {len(paths)} …"]), shown, files
            start = time.perf_counter()
            try:
                with self._lock:
                    mask, cutout, share = self._predict(path)
            except UserError as error:
                lines.append(f"- {_plain(str(error))}")
                continue
            seconds = time.perf_counter() - start
            lines.append(f"- {_plain(path.name)}: {seconds:.2f} s, object {share:.1%} of the photo")
            shown += [(str(mask), f"{path.name}: mask"), (str(cutout), f"{path.name}: cut-out")]
            files += [str(mask), str(cutout)]
        yield "\n".join(lines), shown, files

    def _predict(self, path: Path) -> tuple[Path, Path, float]:
        """The files of a photo's mask and cut-out, and how much of it the object is."""
        (prediction,) = self._model.predict(path)
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        endings = ("_mask.png", f"_cutout{self._suffix}")
        mask, cutout = (folder / f"{path.stem}{ending}" for ending in endings)
        write_bytes(mask, encode_mask(prediction.mask()))
        if prediction.cutout is None:
            raise ValueError("the model must make cut-outs")
        data = encoding.encode(prediction.cutout, self._suffix, encoding.read_profile(path))
        write_bytes(cutout, data)
        return mask, cutout, float(prediction.mask().mean())


def _plain(text: str) -> str:
    """A text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#<>!|~" else c for c in printable(text))
