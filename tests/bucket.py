"""A bucket of Google Cloud Storage in this process, for the tests.

The emulator's answers to reads lack the generation, on which TensorStore's
conditional writes depend; it is added here. Its store is not safe for threads
(a request fails if another one changes the store meanwhile): one at a time.
"""

import contextlib
import functools
import http.server
import logging
import threading

from gcp_storage_emulator import server, storage
from gcp_storage_emulator.handlers import buckets, objects


def _download(request, response, store, *args, **kwargs):
  _DOWNLOAD(request, response, store, *args, **kwargs)
  if response.status < 400:
    place = request.params["bucket_name"], request.params["object_id"]
    entry = store.get_file_obj(*place)
    response["x-goog-generation"] = entry["generation"]


_DOWNLOAD = objects.download
objects.download = _download
for _, methods in server.HANDLERS:
  for method, handler in methods.items():
    methods[method] = _download if handler is _DOWNLOAD else handler


_LOCK = threading.Lock()


def _one_at_a_time(router, method, handle=server.Router.handle):
  with _LOCK:
    handle(router, method)


server.Router.handle = _one_at_a_time


class Server(http.server.ThreadingHTTPServer):
  """Says nothing about connections that a client closes."""

  def handle_error(self, request, client_address):
    pass


@contextlib.contextmanager
def serve(name: str):
  """Serves a bucket; yields the environment of processes that use it."""
  logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
  store = storage.Storage(use_memory_fs=True)
  buckets.create_bucket(name, store)
  handler = functools.partial(server.RequestHandler, store)
  with Server(("localhost", 0), handler) as httpd:
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    address = f"http://localhost:{httpd.server_port}"
    yield {
      "STORAGE_EMULATOR_HOST": address,
      "TENSORSTORE_GCS_HTTP_URL": address,
      # Nobody waits for the metadata server of a machine of Google's.
      "NO_GCE_CHECK": "true",
      "GCE_METADATA_ROOT": address.removeprefix("http://"),
    }
    httpd.shutdown()
