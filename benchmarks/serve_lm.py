"""Serve a local causal language model under the chat-completions protocol, one request at a time.

Needs the extra lm, and accelerate to read a GGUF file.
A stand-in for a real endpoint, for measuring on a machine without one:

    python benchmarks/serve_lm.py --gguf model.gguf --port 8091
    OPENAI_BASE_URL=http://localhost:8091/v1 OPENAI_API_KEY=any lexrec evaluate --llm smollm2 ...

Answers are greedy whatever the request says, so that they are the same again.
"""

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Chat:
    """A model and its tokenizer, read once from a GGUF file."""

    def __init__(self, gguf: Path) -> None:
        folder, name = str(gguf.parent), gguf.name
        self.tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        self.model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
        self.lock = threading.Lock()

    @torch.inference_mode()
    def answer(self, messages: list[dict[str, str]], max_tokens: int) -> str:
        asked = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with self.lock:
            row = self.model.generate(**asked, max_new_tokens=max_tokens, do_sample=False)[0]
        answer: str = self.tokenizer.decode(row[asked["input_ids"].shape[1] :], skip_special_tokens=True)
        return answer


def handler(chat: Chat) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = chat.answer(body["messages"], body.get("max_tokens", 16))
            choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
            choice["message"] = {"role": "assistant", "content": text}
            reply = {"id": "local", "object": "chat.completion", "created": 0, "choices": [choice]}
            data = json.dumps(reply | {"model": body["model"]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Requests are not worth a line each."""

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8091)
    args = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", args.port), handler(Chat(args.gguf)))
    print(f"http://127.0.0.1:{args.port}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
