"""A server for the part of the hub's protocol that downloads use."""

import hashlib
import http.server
import json
import threading
import urllib.parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
  """Serves folders as repositories, each with the revisions main and COMMIT.

  Attributes:
    repositories: "owner/name" -> folder.
    gated: Names of repositories to which nobody has access.
    downloads: Names of the files that were asked for, since the beginning.
  """

  def __init__(self):
    self.repositories = {}
    self.gated = set()
    self.downloads = []
    hub = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        hub.answer(self)

      def do_HEAD(self):
        hub.answer(self)

      def log_message(self, *_):
        pass

    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.address = f"http://127.0.0.1:{self._server.server_port}"
    threading.Thread(target=self._server.serve_forever, daemon=True).start()

  def close(self):
    self._server.shutdown()
    self._server.server_close()

  def answer(self, request):
    segments = urllib.parse.unquote(urllib.parse.urlparse(request.path).path).strip("/").split("/")
    listing = segments[:2] == ["api", "models"]
    owner, name, what, revision, *path = segments[2:] if listing else segments
    folder = self.repositories.get(f"{owner}/{name}")
    if f"{owner}/{name}" in self.gated:
      self._refuse(request, 403, "GatedRepo")
    elif folder is None:
      self._refuse(request, 404, "RepoNotFound")
    elif revision not in ("main", COMMIT):
      self._refuse(request, 404, "RevisionNotFound")
    elif listing:
      files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
      names = [file.relative_to(folder).as_posix() for file in files]
      content = {
        "revision": {"id": f"{owner}/{name}", "siblings": [{"rfilename": name} for name in names]},
        "tree": [
          {"type": "file", "path": name, "size": file.stat().st_size, "oid": _digest(file)}
          for name, file in zip(names, files, strict=True)
        ],
      }[what]
      self._send(request, json.dumps(content).encode(), {"Content-Type": "application/json"})
    elif not (file := folder.joinpath(*path)).is_file():
      self._refuse(request, 404, "EntryNotFound")
    else:
      if request.command == "GET":
        self.downloads.append("/".join(path))
      self._send(request, file.read_bytes(), {"ETag": f'"{_digest(file)}"'})

  def _send(self, request, body, headers):
    request.send_response(200)
    for key, value in {
      **headers,
      "X-Repo-Commit": COMMIT,
      "Content-Length": str(len(body)),
    }.items():
      request.send_header(key, value)
    request.end_headers()
    if request.command == "GET":
      request.wfile.write(body)

  def _refuse(self, request, status, code):
    request.send_response(status)
    request.send_header("X-Error-Code", code)
    request.send_header("Content-Length", "0")
    request.end_headers()


def _digest(file):
  return hashlib.sha1(file.read_bytes()).hexdigest()
