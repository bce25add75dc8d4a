"""A server on this machine that plays the language model of --clean llm."""
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def report_in(body):
    return body["messages"][3]["content"].removeprefix("<<<REPORT\n").removesuffix("\nREPORT>>>")


class Server:
    """Answers with `self.reply(number of the request, body)`: a dictionary is an answer, a number an HTTP status."""

    def __init__(self, reply):
        self.bodies, self.lock, outer = [], threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.bodies.append(body)
                    number = len(outer.bodies)
                found = reply(number, body)
                content = json.dumps({"choices": [{"message": {"content": found if isinstance(found, str | list) else json.dumps(found)},
                                                   "finish_reason": "stop"}]}).encode()
                self.send_response(found if isinstance(found, int) else 200)
                if found == 429:
                    self.send_header("Retry-After", "0")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                return None

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
