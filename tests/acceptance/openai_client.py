"""The official `openai` client as a process: reads jobs as JSON on stdin, answers as JSON on stdout.

In:  {"base_url": ..., "api_key": ..., "together": bool, "jobs": [{"chat": bool, "params": {...}}, ...]}
Out: [{"text", "finish_reason", "pieces", "usage", "error"}, ...]

With "hang_up_after": N it opens the first job as a stream, says so after N pieces and reads no further, until
SIGTERM, upon which it closes the connection, or SIGKILL.
"""

from __future__ import annotations

import json
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai


def create(client: openai.OpenAI, job: dict[str, Any]) -> Any:
    if job["chat"]:
        return client.chat.completions.create(**job["params"])
    return client.completions.create(**job["params"])


def text_of(choice: Any, chat: bool) -> str:
    if not chat:
        return choice.text or ""
    part = choice.delta if hasattr(choice, "delta") else choice.message
    return part.content or ""


def answer(client: openai.OpenAI, job: dict[str, Any]) -> dict[str, Any]:
    try:
        if not job["params"].get("stream"):
            whole = create(client, job)
            choice = whole.choices[0]
            return {
                "text": text_of(choice, job["chat"]),
                "finish_reason": choice.finish_reason,
                "pieces": 1,
                "usage": whole.usage.model_dump() if whole.usage else None,
                "error": None,
            }
        text, pieces, reason, usage = "", 0, None, None
        for chunk in create(client, job):
            usage = chunk.usage.model_dump() if chunk.usage else usage
            for choice in chunk.choices:
                piece = text_of(choice, job["chat"])
                text, pieces = text + piece, pieces + bool(piece)
                reason = choice.finish_reason or reason
        return {"text": text, "finish_reason": reason, "pieces": pieces, "usage": usage, "error": None}
    except openai.OpenAIError as error:
        status = getattr(error, "status_code", None)
        body = getattr(error, "body", None)
        return {
            "error": {"kind": type(error).__name__, "status": status, "body": body, "message": str(error)}
        }


def main() -> None:
    task = json.load(sys.stdin)
    client = openai.OpenAI(
        base_url=task["base_url"], api_key=task.get("api_key", "unused"), max_retries=0, timeout=120
    )
    jobs = task["jobs"]
    if "hang_up_after" in task:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        with create(client, jobs[0]) as stream:
            for count, _ in enumerate(stream, start=1):
                if count == task["hang_up_after"]:
                    break
            print("has read enough", flush=True)
            signal.pause()
    with ThreadPoolExecutor(len(jobs) if task.get("together") else 1) as pool:
        print(json.dumps(list(pool.map(lambda job: answer(client, job), jobs))))


if __name__ == "__main__":
    main()
