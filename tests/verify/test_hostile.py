"""Servers that lie, loop, redirect, or never end, and URLs and keys that cannot be used: an error with a code."""

import gzip
import json
import math
import time

import pytest

from bishare_dsl.verify.server import KEY, Server, ServerError
from tests.support.served import answering, ask_one

SECRET = "sk-SECRET"


def asked(url, seconds=5):
    """Ask a server, and return its error."""
    with pytest.raises(ServerError, match="BS872") as caught:
        ask_one(Server(url, seconds=seconds))
    return str(caught.value)


MODELS = json.dumps({"data": [{"id": "base"}, {"id": "mine", "parent": "base"}]})


def completions(edit):
    """Right names, and completions that ``edit`` makes of the texts and the name of the model."""

    def answer(handler, body):
        texts = body and ([body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"])
        told = MODELS if body is None else json.dumps({"choices": edit(texts, body["model"])})
        handler.send(told)

    return answer


def scored(texts, top):
    """Completions with this log-probability of the tokens of each text."""
    number = len(texts[0]) if len(texts) == 1 else None
    tops = [top(number or len(text)) for text in texts]
    return [{"index": i, "logprobs": {"top_logprobs": [one]}} for i, one in enumerate(tops)]


def each(top):
    return completions(lambda texts, name: scored(texts, top))


def unlike(n):
    return {"token_id:1": -0.5, "token_id:2": -1.0, "t": -n}


def text(content, status=200, **headers):
    return lambda handler, body: handler.send(content, status, **headers)


def raw(content):
    return lambda handler, body: handler.wfile.write(content)


def refusing(handler, body):
    told = MODELS if body is None else json.dumps({"choices": scored(body["prompt"], unlike)})
    handler.send(told, 403 if body and body["model"] == "mine" else 200)


def none_of(**choice):
    return completions(lambda texts, name: [choice | {"index": i} for i in range(len(texts))])


NO_MODELS = [
    "[]", "null", "5", "", "<html>", '{"data": "abc"}', '{"data": [{}]}', '{"data": [{"id": {"a": 1}}]}',
    '{"data":[{"id":' + "9" * 5000 + "}]}",
]  # fmt: skip
NO_NUMBERS = {"NaN": "finite", "-Infinity": "finite", "0.5": "less than or equal to 0"}
NO_NUMBERS |= dict.fromkeys(["null", "true", '"-1"'], "valid number")
LOGPROBS = [[], {"top_logprobs": None}, {"top_logprobs": [[]]}, {"top_logprobs": {}}]

WRONG = {
    **{f"models: {told[:20]}": (text(told), "gives no models") for told in NO_MODELS},
    "gzip": (text(gzip.compress(MODELS.encode()), Content_Encoding="gzip"), "gives no models"),
    "UTF-16": (text(MODELS.encode("utf-16")), "gives no models"),
    "no model": (text('{"data": []}'), "no base model"),
    "adapters alone": (text('{"data": [{"id": "mine"}]}'), "no base model"),
    "deep": (text("[" * 200_000), "nested too deep"),
    "many values": (text('{"data":[' + "{}," * 2**21 + "{}]}"), "values"),
    "large": (text(b" " * (2**24 + 1)), "more than 16,777,216 bytes"),
    "shorter than it says": (text("{", Content_Length=100), "gives no models"),
    "bad chunks": (text("zz\r\nabc", Transfer_Encoding="chunked"), "does not answer"),
    "a long header": (raw(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000), "does not answer"),
    "many headers": (raw(b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 500 + b"\r\n"), "100 headers"),
    **{
        f"bytes {told!r}": (raw(told), "does not answer")
        for told in (b"", b"HELLO\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n")
    },
    "status 204": (text("", 204), "answers 204 to /models"),
    **{
        f"status {status}": (text("no", status), f"answers {status} to /models: no")
        for status in (201, 400, 401, 403, 404, 418, 422, 429, 500, 502, 503)
    },
    **{f"logprobs: {told}": (none_of(logprobs=told), "gives no completions") for told in LOGPROBS},
    **{
        f"log-probability {told}": (
            each(lambda n, told=told: {"token_id:1": json.loads(told)}),
            said,
        )
        for told, said in NO_NUMBERS.items()
    },
    "NaN of the adapter": (
        completions(
            lambda texts, name: scored(
                texts, unlike if name == "base" else lambda n: {"t": math.nan}
            )
        ),
        "finite",
    ),
    "the adapter is refused": (refusing, "answers 403 to /completions"),
    "alike": (each(lambda n: {"token_id:1": -1.0}), "one answer to all texts"),
    "one text": (none_of(text="x"), "one answer to all texts"),
    "none listed": (each(lambda n: {}), "gives neither log-probabilities nor texts"),
    "neither": (none_of(), "gives neither log-probabilities nor texts"),
    "an index below 0": (
        completions(lambda texts, name: [one | {"index": -1} for one in scored(texts, unlike)]),
        "or not one for each",
    ),
    "an index twice": (
        completions(lambda texts, name: 2 * scored(texts, unlike)),
        "16 answers to 8 texts",
    ),
    "too few": (completions(lambda texts, name: scored(texts, unlike)[1:]), "7 answers to 8 texts"),
    "no choices": (completions(lambda texts, name: None), "gives no completions: choices: "),
}


@pytest.mark.parametrize(("answer", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_an_error(answer, said):
    with answering(answer) as (url, _):
        assert said in asked(url)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_redirect_is_followed(monkeypatch, status, method):
    """The other address would get the key, and its answer would be printed."""
    monkeypatch.setenv(KEY, SECRET)
    with answering(text("SECRET of another service")) as (other, got):

        def redirects(handler, body):
            if body is None and method == "POST":
                handler.send(MODELS)
            else:
                handler.send("", status, Location=other)

        with answering(redirects) as (url, seen):
            said = asked(url)
    assert f"redirects to another address ({status})" in said
    assert "SECRET" not in said
    assert seen[0] == ("/v1/models", f"Bearer {SECRET}")
    assert got == []


def trickle(handler, body):
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    drip(handler)


def drip(handler, content=b" "):
    for _ in range(100):
        handler.wfile.write(content)
        handler.wfile.flush()
        time.sleep(0.05)


def slow_head(handler, body):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    drip(handler, b"X")


def continues(handler, body):
    drip(handler, b"HTTP/1.1 100 Continue\r\n\r\n")


@pytest.mark.parametrize("answer", [trickle, slow_head, continues, lambda h, b: time.sleep(5)])
def test_a_request_ends_in_time(answer):
    with answering(answer) as (url, _):
        assert "does not answer in 0.3 s" in asked(url, 0.3)


def test_a_run_ends_in_time():
    with answering(text("{}")) as (url, seen):
        server = Server(url, until=time.monotonic() - 1)
        with pytest.raises(ServerError, match=r"BS872.*the time for the whole run is up"):
            server.base(["mine"])
    assert seen == []


@pytest.mark.parametrize(("option", "said"), [("timeout", "in 0.2 s"), ("deadline", "in 0.")])
def test_the_command_has_both_limits(bishare, base, lora, option, said):
    with answering(lambda handler, body: time.sleep(2)) as (url, _):
        run = bishare("verify", lora, "--model", base, "--server", url, f"--{option}", "0.2")
    assert (run.code, f"does not answer {said}" in run.err) == (2, True), run.err


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:abc/v1", "http://[::1/v1", "http://a b/v1", "http:///v1", "http://", "",
        "http://127.0.0.1:99999/v1", "http://127.0.0.1:-1/v1", "http://127.0.0.1:1/v1\x1b[2J",
        "http://127.0.0.1:1/v1\r\nX: y", "file:///etc/passwd", "ftp://127.0.0.1/x",
    ],
)  # fmt: skip
def test_a_wrong_url_is_not_asked(url):
    with pytest.raises(ServerError, match=r"BS872.*cannot be asked: give its URL"):
        Server(url)


@pytest.mark.parametrize(
    "url", ["http://user:hunter2@127.0.0.1:1/v1", "http://127.0.0.1:1/v1?token=hunter2"]
)
def test_a_password_in_a_url_is_refused_and_not_printed(url):
    with pytest.raises(ServerError, match=f"a password or a query(?s:.*){KEY}") as caught:
        Server(url)
    assert "hunter2" not in str(caught.value)


def test_a_key_is_stripped_of_line_ends_and_never_printed(monkeypatch):
    monkeypatch.setenv(KEY, f" {SECRET}\r\n")
    with answering(text(f"wrong key {SECRET}", 401)) as (url, seen):
        said = asked(url)
    assert seen == [("/v1/models", f"Bearer {SECRET}")]
    assert "answers 401 to /models: wrong key [key]" in said
    assert SECRET not in said


@pytest.mark.parametrize("key", [f"{SECRET}\r\nX-Injected: 1", f"{SECRET}é", f"{SECRET}\x7f"])
def test_a_key_that_no_header_can_have_is_not_sent(monkeypatch, key):
    monkeypatch.setenv(KEY, key)
    with pytest.raises(ServerError, match="characters that no header can have") as caught:
        Server("http://127.0.0.1:1/v1")
    assert SECRET not in str(caught.value)


def test_no_proxy_of_the_environment_gets_the_key(monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    with answering(text("{}")) as (proxy, seen):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        assert "does not answer" in asked("http://127.0.0.2:9/v1")
    assert seen == []


def test_what_a_server_says_does_not_reach_the_terminal(bishare, base, lora):
    """Nor does it forge a verdict, nor end the command with a traceback."""
    forged = "\x1b]0;pwn\x07\x1b[2J\r\nverdict     APPLIED: all is well \x9b31m \u202e \u2028 x"
    with answering(text(forged, 500)) as (url, _):
        run = bishare("verify", lora, "--model", base, "--server", url)
    assert (run.code, "BS872" in run.err) == (2, True)
    for char in "\x1b\x07\x9b\u202e\u2028":
        assert char not in run.out + run.err
    assert not [line for line in run.out.splitlines() if line.startswith("verdict     APPLIED")]


def test_a_get_has_no_body():
    """Servers that leave it unread reset the connection, and some proxies refuse it."""
    got = []

    def answer(handler, body):
        got.append((handler.command, handler.headers.get("Content-Length")))
        handler.send(MODELS)

    with answering(answer) as (url, _):
        assert Server(url).base(["mine"]) == "base"
    assert got == [("GET", None)]
