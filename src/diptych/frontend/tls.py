"""HTTPS: the server's own certificate, and how to talk to a server whose certificate one knows."""

import logging
import ssl
from pathlib import Path

from diptych.core.clock import Clock
from diptych.core.errors import ConfigError
from diptych.frontend.watched_files import WatchedFiles

log = logging.getLogger(__name__)


class ServerTls:
    """The server's side of TLS. A certificate that is renewed on disk is shown from the next connection on.

    Owned by the event loop. Connections that are open keep the one that they began with.
    """

    def __init__(self, certificate: Path, key: Path, clock: Clock) -> None:
        """Read the files.

        Raises: ConfigError if they cannot be used.
        """
        self._certificate, self._key = certificate.absolute(), key.absolute()
        self._watched = WatchedFiles([self._certificate, self._key], clock)
        self._current = server_tls(self._certificate, self._key)
        self.context = server_tls(self._certificate, self._key)
        """Listen with this one; it hands each connection over to the newest, also if the client names no server."""
        self.context.sni_callback = self._on_client_hello

    def _on_client_hello(self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _: ssl.SSLContext) -> None:
        if self._watched.have_changed():
            try:
                # Into a context of its own: of two files that do not fit, or not yet, nothing is taken.
                self._current = server_tls(self._certificate, self._key)
            except ConfigError as error:
                log.warning("the certificate stays as it was: %s", error)
        connection.context = self._current


def server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return the server's side of TLS: version 1.2 or newer, OpenSSL's own choice of ciphers.

    Raises: ConfigError if the files cannot be used.
    """
    for path, flag in ((certificate, "--tls-cert"), (key, "--tls-key")):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigError(f"{flag}: cannot read {path}: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(certificate, key, password=_refuse_to_ask)
    except ConfigError:
        raise ConfigError(f"--tls-key: {key} is encrypted; give one without a passphrase (mode 0600)") from None
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error) or "no PEM"
        raise ConfigError(
            f"--tls-cert and --tls-key: {certificate} and {key} are no certificate and its key in PEM ({reason})"
        ) from None
    return context


def _refuse_to_ask() -> str:
    """Stand in for OpenSSL, which would ask at the terminal."""
    raise ConfigError("encrypted")


def client_tls(certificates: Path) -> ssl.SSLContext:
    """Return a client's side that trusts `certificates` and nothing else.

    Raises: ConfigError if the file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a server's own certificate may be given
    try:
        context.load_verify_locations(certificates)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"--ca-cert: {certificates} holds no certificates in PEM: {error.strerror}") from None
    return context


def own_server_tls(certificate: Path) -> ssl.SSLContext:
    """Return a client's side for whoever has started the server: it knows the certificate, whatever name that has."""
    context = client_tls(certificate)
    context.check_hostname = False
    return context
