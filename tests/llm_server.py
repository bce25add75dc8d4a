"""A server on this machine that plays the language model of --clean llm."""
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def report_in(body):
    """The report that a request asks to clean."""
    content = body["messages"][3]["content"]
    return content.removeprefix("<<<REPORT\n").removesuffix("\nREPORT>>>")


def completion(answer):
    """A chat completion as OpenAI's protocol has it; a dictionary becomes the text of its JSON."""
    content = json.dumps(answer) if isinstance(answer, dict) else answer
    return {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}


class Server:
    """Answers with `reply(number of the request, body)`: an int is a status, bytes are sent raw.

    `bodies` holds the requests so far, `url` is the address for --llm-url.
    """

    def __init__(self, reply):
        self.bodies = []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.bodies.append(body)
                    number = len(outer.bodies)
                answer = reply(number, body)
                content = answer
                if not isinstance(answer, bytes):
                    content = json.dumps(completion(answer)).encode()
                self.send_response(answer if isinstance(answer, int) else 200)
                if answer == 429:
                    self.send_header("Retry-After", "0")
                if answer == 302:
                    self.send_header("Location", outer.url + "/elsewhere")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                return None

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()
