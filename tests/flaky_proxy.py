"""A proxy before a server of buckets, which answers 503 now and then and can be gone."""

import http.server
import threading
import urllib.error
import urllib.request

_OWN = {"connection", "transfer-encoding", "content-length", "host"}


class FlakyProxy:
  """A proxy as a context.

  Args:
    server: URL of the server.
    every: Each request of this number is answered 503; 0: none.

  Attributes:
    url: Its URL.
    requests: Number of requests so far.
    refused: Number of those that were answered 503.
  """

  def __init__(self, server: str, *, every: int):
    self.requests = self.refused = 0
    self._gone, self._lock = threading.Event(), threading.Lock()
    proxy = self

    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def handle_any(self):
        body = self._body()
        with proxy._lock:
          proxy.requests += 1
          refused = every and proxy.requests % every == 0
          proxy.refused += bool(refused)
        if proxy._gone.is_set():
          self.close_connection = True  # without an answer: the client sees a reset connection
          return
        if refused:
          self._answer(503, {}, b'{"error": {"code": 503, "message": "busy"}}')
          return
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _OWN}
        request = urllib.request.Request(
          server + self.path, data=body, headers=headers, method=self.command
        )
        try:
          with urllib.request.urlopen(request) as answer:
            self._answer(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
          self._answer(error.code, dict(error.headers), error.read())

      do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_any

      def _body(self) -> bytes | None:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
          parts = []
          while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
          self.rfile.readline()
          return b"".join(parts)
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length) if length else None

      def _answer(self, status: int, headers: dict, content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
          if name.lower() not in _OWN:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
          self.wfile.write(content)

      def log_message(self, *_):
        pass

    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self._server.daemon_threads = True
    self._server.handle_error = lambda *_: None  # clients that went away
    self.url = f"http://127.0.0.1:{self._server.server_port}"

  def vanish(self, seconds: float) -> None:
    """Answers nothing for a time."""
    self._gone.set()
    threading.Timer(seconds, self._gone.clear).start()

  def __enter__(self):
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    return self

  def __exit__(self, *_):
    self._server.shutdown()
    self._server.server_close()
