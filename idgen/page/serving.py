"""How the page is served: on which port, to whom, with gradio's doors shut that it does not need."""

import os
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idgen.errors import ConfigError
from idgen.page.guard import Guard
from idgen.page.style import CSS, theme

if TYPE_CHECKING:
    import gradio as gr

LOCAL = "127.0.0.1"
PORT = 7860  # gradio's own
PORTS_TRIED = 100
MAX_FILE = "25mb"
WAITING = 40  # clicks in line; further ones are told to come back
# Gradio lists 10,000 clicks, and counts all of them after each, for a dashboard that is shut here.
UNCOUNTED = {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9)}
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the page is, and for whom.

    Attributes:
        host: name or number of the network that is listened on.
        port: that is free, or was when it was looked at.
        users: name and password of each; everybody may come in where there are none.
    """

    host: str = LOCAL
    port: int = PORT
    users: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def is_local(self) -> bool:
        """Whether this machine alone reaches it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def warning(self) -> str | None:
        """What whoever opens it to others should know."""
        if self.is_local:
            return None
        who = "whoever has a password" if self.users else "everybody"
        more = "" if self.users else "; --auth asks for a password"
        return (
            f"--host {self.host}: {who} who reaches this machine over the network can use the page{more}. "
            "It speaks plain HTTP: photos and passwords can be read on the way. Put it behind HTTPS"
        )


def free_port(host: str, asked: int | None) -> int:
    """A port that nobody listens on.

    Args:
        host: of the page.
        asked: this one and no other; if not given, the first free one from `PORT` on.

    Raises:
        ConfigError: if the port is taken: the next free one is named; or none can be had on this host.
    """
    first = PORT if asked is None else asked
    if not 1 <= first <= 65535:
        raise ConfigError(f"--port must be between 1 and 65535, got {first}")
    free = next((p for p in range(first, min(first + PORTS_TRIED, 65536)) if _is_free(host, p)), None)
    if free is None:
        raise ConfigError(f"no port from {first} on is free on {host}; name another --port")
    if asked is not None and free != asked:
        raise ConfigError(
            f"port {asked} is taken, perhaps by a page that runs already; the next free one: --port {free}"
        )
    return free


def _is_free(host: str, port: int) -> bool:
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--host {host}: there is no such address ({error.strerror or error})") from None
    with socket.socket(kind, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind(address)
        except PermissionError:
            raise ConfigError(f"--port {port}: only root may take it; name one from 1024 on") from None
        except OSError:
            return False
    return True


def read_users(text: str | None) -> tuple[tuple[str, str], ...]:
    """``NAME:PASSWORD``, or a file with one such line for each user.

    Raises:
        ConfigError: if it is neither, or the file can be read by others.
    """
    if text is None:
        return ()
    path = Path(text).expanduser()
    is_file = ":" not in text or path.is_file()
    users = [_user(line) for line in (_lines(path) if is_file else [text])]
    if len({name for name, _ in users}) < len(users):
        raise ConfigError("--auth names a user twice")
    return tuple(users)


def _lines(path: Path) -> list[str]:
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"--auth is NAME:PASSWORD or a file of such lines; {str(path)!r} is neither"
        ) from None
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"others can read {path}, which holds passwords: `chmod 600 {path}`")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"{path} names no user; a line is NAME:PASSWORD")
    return lines


def _user(line: str) -> tuple[str, str]:
    name, _, password = line.partition(":")
    if not name or not password:
        raise ConfigError("--auth wants NAME:PASSWORD; a name or a password is missing")
    return name, password


def launch_settings(address: Address) -> dict[str, Any]:
    """What `gr.Blocks.launch` is given: private, silent, with limits."""
    from starlette.middleware import Middleware

    hosts = LOOPBACK | {address.host.lower()} if address.is_local else frozenset()
    return {
        "server_name": address.host,
        "server_port": address.port,
        "share": False,
        "auth": list(address.users) or None,
        "inbrowser": False,
        "quiet": True,
        "run_history": False,  # would keep photos in the browser
        "enable_monitoring": False,
        "strict_cors": True,
        "ssr_mode": False,
        "mcp_server": False,
        "max_file_size": MAX_FILE,
        "allowed_paths": [],
        "show_error": False,  # of what is no `gr.Error`: it may name paths
        "footer_links": ["api"],
        "theme": theme(),
        "css": CSS,
        "app_kwargs": {"middleware": [Middleware(Guard, hosts=hosts)], "docs_url": None, "redoc_url": None},  # pyright: ignore[reportArgumentType]
    }


def serve(page: "gr.Blocks", address: Address, *, wait: bool = True) -> str:
    """Open the page to its users.

    Args:
        page: as it was laid out.
        address: where.
        wait: for its end; otherwise it runs beside the caller until ``page.close()``.

    Returns:
        Its address, for a browser.

    Raises:
        ConfigError: if the port was taken meanwhile.
    """
    os.environ.update(UNCOUNTED)
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    try:
        _, url, _ = page.launch(prevent_thread_lock=True, **launch_settings(address))
    except OSError as error:  # somebody was quicker
        raise ConfigError(f"port {address.port} cannot be had any more: {error}") from None
    if wait:
        print(f"idgen: the page is at {url} (Ctrl-C ends it)", flush=True)
        page.block_thread()
    return url
