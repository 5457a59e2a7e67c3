"""A server of OpenAI's protocol on this machine that answers well, or in one of the ways that servers go wrong."""

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TROUBLES = ("429", "500", "garbage", "half", "nothing", "no choices", "no text", "null")


class Loopback:
    """What the server does, and what it did.

    Attributes:
        reply: gives the text for a request's body.
        behave: gives what happens to a request, from its number and body: `ok`, one of `TROUBLES`, or a status.
        served: good answers by the text that was asked; `requests`: all of them, in order.
    """

    def __init__(self, reply, behave, entry, delay):
        self.reply, self.behave, self.entry, self.delay = reply, behave, entry, delay
        self.served, self.requests, self.keys = Counter(), [], Counter()
        self.busy, self.most, self.lock = 0, 0, threading.Lock()
        self.url = ""

    @property
    def model(self):
        return f"openai:parrot@{self.url}"


def echo(body):
    return f"you said: {body['messages'][-1]['content']}"


@contextmanager
def loopback(reply=echo, behave=lambda number, body: "ok", entry=None, delay=0.0):
    """Yield a running server as `Loopback`."""
    state = Loopback(reply, behave, entry or {"id": "parrot", "owned_by": "us"}, delay)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def send(self, status, content, headers=(), cut=None):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[:cut])
            if cut is not None:
                self.close_connection = True

        def do_GET(self):
            self.send(200, json.dumps({"object": "list", "data": [state.entry]}).encode())

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                number = len(state.requests)
                state.requests.append(body)
                state.busy += 1
                state.most = max(state.most, state.busy)
            time.sleep(state.delay)
            try:
                self.respond(state.behave(number, body), body)
            except BrokenPipeError:
                pass
            finally:
                with state.lock:
                    state.busy -= 1

        def respond(self, what, body):
            if what == "nothing":
                self.close_connection = True
            elif what == "garbage":
                self.send(200, b"<html>not what you wanted</html>")
            elif what == "429":
                self.send(429, b'{"error": {"message": "slow down"}}', [("Retry-After", "0.01")])
            elif what.isdigit():
                self.send(int(what), b'{"error": {"message": "no"}}')
            else:
                content = json.dumps(self.completion(what, body)).encode()
                if what == "ok":
                    with state.lock:
                        state.served[body["messages"][-1]["content"]] += 1
                        state.keys[self.headers.get("Idempotency-Key")] += 1
                self.send(200, content, cut=len(content) // 2 if what == "half" else None)

        def completion(self, what, body):
            text = {"no text": "", "null": None}.get(what, state.reply(body)) if what != "no choices" else ""
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
            head = {"id": "1", "object": "chat.completion", "created": 0, "model": "parrot", "system_fingerprint": "fp"}
            return {**head, "choices": [] if what == "no choices" else [choice], "usage": usage}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
