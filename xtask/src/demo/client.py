"""Talks to Dgraph as an application does: by HTTP on port 8080, and by pydgraph (gRPC) on port 9080, at the same time.

    client.py ADDRESS SECONDS load         sets the schema, loads some films, counts them
    client.py ADDRESS SECONDS add TITLE    adds one film, counts them
    client.py ADDRESS SECONDS count        counts them

Prints one JSON object: for each port `outcome` (answered, timeout, refused, error) and `detail`. No call takes longer
than SECONDS.
"""

import json
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request

import grpc
import pydgraph

HTTP_PORT = 8080
GRPC_PORT = 9080
QUERY = "{ films(func: type(Film)) { count(uid) } }"
SCHEMA = """
title: string @index(exact) .
year: int .
director: uid @reverse .
name: string @index(exact) .
type Film {
  title
  year
  director
}
type Person {
  name
}
"""
LUCAS = {"uid": "_:lucas", "dgraph.type": "Person", "name": "George Lucas"}
KERSHNER = {"uid": "_:kershner", "dgraph.type": "Person", "name": "Irvin Kershner"}
MARQUAND = {"uid": "_:marquand", "dgraph.type": "Person", "name": "Richard Marquand"}
FILMS = [
    {"title": "Star Wars", "year": 1977, "director": LUCAS},
    {"title": "The Empire Strikes Back", "year": 1980, "director": KERSHNER},
    {"title": "Return of the Jedi", "year": 1983, "director": MARQUAND},
]


def count_films(answer):
    return answer["films"][0]["count"]


def films(count):
    return f"{count} film" if count == 1 else f"{count} films"


def by_http(address, seconds):
    request = urllib.request.Request(
        f"http://{address}:{HTTP_PORT}/query", data=QUERY.encode(), headers={"Content-Type": "application/dql"}
    )
    with urllib.request.urlopen(request, timeout=seconds) as response:
        body = json.load(response)
    if "data" not in body:
        raise RuntimeError(body)
    return f"query: {films(count_films(body['data']))}"


def by_grpc(address, seconds, action, title):
    stub = pydgraph.DgraphClientStub(f"{address}:{GRPC_PORT}")
    try:
        client = pydgraph.DgraphClient(stub)
        if action == "load":
            client.alter(pydgraph.Operation(schema=SCHEMA), timeout=seconds)
            done = f"set schema, loaded {len(FILMS)}, "
            mutate(client, [dict(film, **{"dgraph.type": "Film"}) for film in FILMS], seconds)
        elif action == "add":
            mutate(client, [{"dgraph.type": "Film", "title": title}], seconds)
            done = "added one, "
        else:
            done = ""
        answer = client.txn(read_only=True).query(QUERY, timeout=seconds)
        return f"{done}query: {films(count_films(json.loads(answer.json)))}"
    finally:
        stub.close()


def mutate(client, objects, seconds):
    transaction = client.txn()
    try:
        transaction.mutate(set_obj=objects, timeout=seconds, commit_now=True)
    finally:
        transaction.discard()


def outcome_of(error):
    """A dropped packet is answered by nobody; a closed port is refused at once."""
    if isinstance(error, grpc.RpcError):
        text = f"{error.code().name}: {error.details()}"
        if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            return "timeout", ""
        return ("refused", "") if "Connection refused" in text else ("error", text)
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, (TimeoutError, socket.timeout)):
        return "timeout", ""
    if isinstance(cause, ConnectionRefusedError):
        return "refused", ""
    return "error", f"{type(error).__name__}: {error}"


def main():
    address, seconds, action = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    title = sys.argv[4] if len(sys.argv) > 4 else None
    # Whatever hangs in spite of its timeout ends the process: nothing may be left behind.
    signal.alarm(int(seconds * 4) + 10)
    results = {}

    def ask(name, work):
        try:
            results[name] = {"outcome": "answered", "detail": work()}
        except Exception as error:
            outcome, detail = outcome_of(error)
            results[name] = {"outcome": outcome, "detail": detail}

    grpc_side = threading.Thread(target=ask, args=("grpc", lambda: by_grpc(address, seconds, action, title)))
    grpc_side.start()
    if action != "count":
        # What was written first is what both then count.
        grpc_side.join()
    ask("http", lambda: by_http(address, seconds))
    grpc_side.join()
    print(json.dumps(results))


main()
