#!/usr/bin/env python3
"""Captures what three stock etcd members say to each other, and writes a sample of it as files.

    capture.py ETCD ETCDCTL NAME OUT     e.g. capture.py bin/etcd bin/etcdctl 3.7 consensus/tests/golden

Each member is reached through a proxy that keeps every byte. The members elect, write, hand leadership over, read on
followers, take in a learner, and one that was away for long is sent a snapshot. Written are, for this NAME:

- NAME.messages: bodies of message streams, each behind its length as u64be
- NAME.msgapps: bodies of msgapp streams, likewise
- NAME.posts: bodies of POST /raft, likewise
- NAME.snapshots: bodies of POST /raft/snapshot up to the end of the message, likewise
- NAME.asked, NAME.answered: a head of each kind of request, and of the answers, likewise

A body is cut at a frame's end, once it has shown enough.
"""
import os, re, shutil, socket, struct, subprocess, sys, tempfile, threading, time

etcd, etcdctl, name, out = sys.argv[1:]
BODY_MAX = 2500
work = tempfile.mkdtemp()


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Proxy:
    """Forwards connections to a member. Keeps what each side said."""

    def __init__(self, target):
        self.target, self.connections, self.is_up = target, [], True
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                client.close()
                continue
            asked, answered = bytearray(), bytearray()
            self.connections.append((asked, answered))
            threading.Thread(target=self.pump, args=(client, server, asked), daemon=True).start()
            threading.Thread(target=self.pump, args=(server, client, answered), daemon=True).start()

    @staticmethod
    def pump(source, sink, kept):
        try:
            while part := source.recv(65536):
                kept.extend(part)
                sink.sendall(part)
        except OSError:
            pass
        for side in (source, sink):
            try:
                side.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class Member:
    def __init__(self, number):
        self.name, self.client, self.peer = f"m{number}", port(), port()
        self.proxy = Proxy(self.peer)
        self.peer_url = f"http://127.0.0.1:{self.proxy.port}"

    def start(self, cluster, state):
        url = f"http://127.0.0.1:{self.client}"
        self.process = subprocess.Popen(
            [etcd, "--name", self.name, "--data-dir", f"{work}/{self.name}", "--initial-cluster", cluster,
             "--initial-cluster-state", state, "--initial-advertise-peer-urls", self.peer_url,
             "--listen-peer-urls", f"http://127.0.0.1:{self.peer}", "--listen-client-urls", url,
             "--advertise-client-urls", url, "--snapshot-count", "50", "--experimental-snapshot-catchup-entries=5"
             if name.startswith("3.5") else "--snapshot-catchup-entries=5"],
            stdout=subprocess.DEVNULL, stderr=open(f"{work}/{self.name}.log", "a"))

    def ctl(self, *words):
        words = [etcdctl, "--endpoints", f"127.0.0.1:{self.client}", *words]
        ran = subprocess.run(words, capture_output=True, text=True)
        if ran.returncode:
            print(words, ran.stderr.strip(), file=sys.stderr)
        return ran.stdout


def healthy(member):
    for _ in range(100):
        if member.ctl("get", "x", "--write-out=fields"):
            return
        time.sleep(0.1)
    sys.exit("no answer")


def live(members):
    one, two, three = members
    one.ctl("put", "greeting", "hello")
    for number in range(20):
        two.ctl("put", f"key-{number}", "value" * number)
        three.ctl("get", "greeting")
    ids = re.findall(r'"MemberID" : (\d+)', "".join(m.ctl("endpoint", "status", "--write-out=fields") for m in members))
    for member in members:
        for target in ids[:2]:
            member.ctl("move-leader", f"{int(target):x}")
    one.ctl("put", "large", "x" * 2_000)
    # One that is away for longer than the log reaches back.
    three.process.terminate()
    three.process.wait()
    for number in range(120):
        one.ctl("put", f"away-{number}", "v")
    three.start(cluster, "existing")
    healthy(three)
    time.sleep(7)  # connected for long enough to take in another one
    learner = Member(4)
    one.ctl("member", "add", learner.name, "--learner", f"--peer-urls={learner.peer_url}")
    learner.start(f"{cluster},{learner.name}={learner.peer_url}", "existing")
    time.sleep(3)
    one.ctl("put", "last", "one")
    time.sleep(1)
    return learner


def dechunked(body):
    whole, at = bytearray(), 0
    while (end := body.find(b"\r\n", at)) >= 0:
        size = int(body[at:end].split(b";")[0] or b"0", 16)
        if size == 0 or len(body) < end + 2 + size:
            break
        whole += body[end + 2:end + 2 + size]
        at = end + 2 + size + 2
    return bytes(whole)


def frames(body, is_msgapp):
    """The ends of the frames of a stream's body."""
    at = 0
    word = lambda place: struct.unpack(">Q", body[place:place + 8])[0]
    while at < len(body):
        try:
            if not is_msgapp:
                at += 8 + word(at)
            elif body[at] == 0:
                at += 1
            elif body[at] == 2:
                at += 9 + word(at + 1)
            else:
                count, at = word(at + 1), at + 9
                for _ in range(count):
                    at += 8 + word(at)
                at += 8
        except struct.error:
            return
        if at <= len(body):
            yield at


def cut(body, is_msgapp):
    last = 0
    for end in frames(body, is_msgapp):
        last = end
        if end > BODY_MAX:
            break
    return body[:last]


def split(proxies):
    found = {"messages": [], "msgapps": [], "posts": [], "snapshots": []}
    heads = {"asked": {}, "answered": {}}
    for asked, answered in [c for p in proxies for c in p.connections]:
        asked, answered = bytes(asked), bytes(answered)
        for kind, said in (("asked", asked), ("answered", answered)):
            head, end, _ = said.partition(b"\r\n\r\n")
            words = head.split(b"\r\n")[0].split(b" ")
            about = (words[0], re.sub(rb"[0-9a-f]{8,}", b"", words[1]) if len(words) > 1 else b"")
            heads[kind].setdefault(about, head + end)
        if asked.startswith(b"GET /raft/stream/"):
            kind = "msgapps" if asked.startswith(b"GET /raft/stream/msgapp/") else "messages"
            body = dechunked(answered.partition(b"\r\n\r\n")[2])
            found[kind].append(cut(body, kind == "msgapps"))
        at = 0
        while (at := asked.find(b"POST /raft", at)) >= 0:
            head, end, rest = asked[at:].partition(b"\r\n\r\n")
            heads["asked"].setdefault(tuple(head.split(b" ")[:2]), head + end)
            if head.startswith(b"POST /raft/snapshot"):
                body = dechunked(rest)
                found["snapshots"].append(body[:8 + struct.unpack(">Q", body[:8])[0]])
            elif length := re.search(rb"Content-Length: (\d+)", head):
                found["posts"].append(rest[:int(length[1])])
            at += 1
    return found | {kind: list(by_kind.values()) for kind, by_kind in heads.items()}


members = [Member(number) for number in (1, 2, 3)]
cluster = ",".join(f"{m.name}={m.peer_url}" for m in members)
for member in members:
    member.start(cluster, "new")
healthy(members[0])
everyone = members + [live(members)]
for member in everyone:
    member.process.terminate()
    member.process.wait()
for kind, bodies in split([member.proxy for member in everyone]).items():
    # The longest are those that show most; a few short ones come with them.
    bodies = sorted({body for body in bodies if body}, key=len)
    kept = bodies if len(bodies) <= 8 else bodies[-6:] + bodies[:2]
    with open(f"{out}/{name}.{kind}", "wb") as file:
        for body in kept:
            file.write(struct.pack(">Q", len(body)) + body)
    print(kind, len(bodies), "bodies,", sum(map(len, kept)), "bytes kept")
shutil.rmtree(work)
