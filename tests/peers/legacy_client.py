"""The backup client of legacy nodes, as the hub sees it: the same calls of the same NBD library, the same
requests, the same habits and faults. Started by a node with the client's own command line:

    legacy_client.py migrate --vmware-endpoint H --vmware-username U --vmware-password P --vmware-path PATH
                     --nbd-targets TARGETS --job-id JOB

What a hypervisor would tell it comes from the JSON file in LEGACY_VM:

    {"disks": [{"key": 2000, "path": "disk.raw", "change_id": "uuid/7", "changed": {"uuid/6": [[offset, length]]}}],
     "die_at": "1:copied", "hang_at": null, "steps": "steps.log"}

`die_at` ends it like a crash, when the disk of that position in the list has reached that step; `hang_at` leaves
it there with its connections open. Every step is appended to `steps`.
"""

import json
import os
import re
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import nbd

MIB = 1 << 20
LARGEST_CHUNK = 32 * MIB
# Below this a chunk is searched for data, from here on it is sampled.
SAMPLED_FROM = 4 * MIB
WORKERS = 3


class Fatal(Exception):
    """Ends the client with status 1 and without a word to the hub."""


def options(arguments):
    if not arguments or arguments[0] != "migrate":
        raise Fatal("unknown command")
    return {name.lstrip("-"): value for name, value in zip(arguments[1::2], arguments[2::2])}


class Client:
    def __init__(self, flags, vm):
        self.hub = os.environ.get("SHA_API_URL", "http://localhost:8082")
        self.job = flags["job-id"]
        self.vm_name = flags["vmware-path"].split("/")[-1]
        self.targets = targets(flags["nbd-targets"])
        self.vm = vm
        # Handles of earlier disks stay open until the process ends.
        self.leaked = []

    def reached(self, position, step):
        step = f"{position}:{step}"
        if self.vm.get("steps"):
            with open(self.vm["steps"], "a") as log:
                log.write(step + "\n")
        if self.vm.get("die_at") == step:
            os._exit(1)
        while self.vm.get("hang_at") == step:
            threading.Event().wait()

    def run(self):
        self.reached(0, "begun")
        # Strictly one disk after the other; the first error ends all.
        for position, disk in enumerate(self.vm["disks"]):
            self.back_up(position, disk)

    def back_up(self, position, disk):
        target = self.targets.get(str(disk["key"]))
        if target is None:
            raise Fatal(f"no target for disk {disk['key']}")
        # Asked before the export is known, therefore for disk 0, whatever the disk.
        full = self.needs_full_copy(disk)
        self.reached(position, "decided")
        first = connect(target, meta=False)
        self.reached(position, "connected")
        size = os.path.getsize(disk["path"])
        if full:
            data = connect(target, meta=True)
            chunks = full_chunks(size)
        else:
            # The first handle is overwritten and never closed.
            self.leaked.append(first)
            del first
            base = self.change_id(index_of(self.job, target["export"]))
            self.reached(position, "asked")
            if base not in disk["changed"]:
                raise Fatal(f"the hypervisor knows no changes since {base!r}")
            data = connect(target, meta=False)
            chunks = changed_chunks(disk["changed"][base])
        self.reached(position, "data_connected")
        self.copy(position, disk, data, chunks, size)
        self.reached(position, "copied")
        if any(chunks):
            self.report("completed", "completed", 0, 0)
        self.reached(position, "reported")
        # The last reference goes, and with it the connection: abruptly, without NBD_CMD_DISC.
        del data
        self.complete(index_of(self.job, target["export"]), disk["change_id"])
        self.reached(position, "completed")

    def needs_full_copy(self, disk):
        if not self.change_id(0):
            return True
        earlier = self.change_id(0)
        if earlier.count("/") != 1:
            return True
        return earlier.split("/")[0] != disk["change_id"].split("/")[0]

    def change_id(self, index):
        query = urllib.parse.urlencode({"vm_name": self.vm_name, "disk_id": index})
        try:
            with urllib.request.urlopen(f"{self.hub}/api/v1/backups/changeid?{query}") as answer:
                if answer.status != 200:
                    return ""
                fields = json.load(answer)
        except urllib.error.HTTPError:
            return ""
        # Decoded into a map of strings: anything else is an error, and an error is a full copy.
        if not all(isinstance(value, str) for value in fields.values()):
            return ""
        return fields.get("change_id", "")

    def copy(self, position, disk, handle, queues, size):
        failures = []
        lock = threading.Lock()
        progress = {"done": 0, "told": time.monotonic()}
        total = size // (1 << 30) * (1 << 30)

        def work(chunks):
            with open(disk["path"], "rb") as source:
                for offset, length in chunks:
                    try:
                        put(handle, source, offset, length)
                    except nbd.Error as error:
                        failures.append(error)
                        return
                    with lock:
                        progress["done"] += length
                        if time.monotonic() - progress["told"] >= 5:
                            progress["told"] = time.monotonic()
                            self.report("running", "transferring", progress["done"], total)
                        self.reached(position, "chunk")

        workers = [threading.Thread(target=work, args=(queue,)) for queue in queues]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failures:
            raise Fatal(str(failures[0]))

    def report(self, status, phase, done, total):
        body = {
            "job_id": self.job,
            "job_type": "backup",
            "status": status,
            "current_phase": phase,
            "bytes_transferred": done,
            "total_bytes": total,
            "transfer_speed_bps": 0,
            "eta_seconds": 0,
            "progress_percent": 100.0 * done / total if total else 0,
            "disks": [],
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        try:
            self.post(f"/api/v1/telemetry/backup/{self.job}", body, timeout=10)
        except OSError:
            pass  # only logged

    def complete(self, index, change_id):
        body = {"change_id": change_id, "disk_id": index, "bytes_transferred": 0}
        status = self.post(f"/api/v1/backups/{self.job}/complete", body, timeout=None)
        if status != 200:
            raise Fatal(f"complete answered {status}")

    def post(self, path, body, timeout):
        request = urllib.request.Request(
            self.hub + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status


def targets(text):
    found = {}
    for part in text.split(","):
        key, url = part.split(":", 1)
        url = urllib.parse.urlparse(url)
        found[key] = {
            "host": url.hostname or "127.0.0.1",
            "port": url.port or 10809,
            "export": urllib.parse.unquote(url.path[1:]),
        }
    return found


def index_of(job, export):
    match = re.search(r"-disk(\d+)-", job) or re.search(r"disk(\d+)$", export)
    return int(match.group(1)) if match else 0


def connect(target, meta):
    handle = nbd.NBD()
    handle.set_export_name(target["export"])
    if meta:
        handle.add_meta_context("base:allocation")
    else:
        handle.set_tls(nbd.TLS_DISABLE)
        handle.set_request_structured_replies(True)
    handle.connect_tcp(target["host"], str(target["port"]))
    return handle


def full_chunks(size):
    third = size // WORKERS // 512 * 512
    edges = [third * n for n in range(WORKERS)] + [size]
    return [list(pieces(begin, end)) for begin, end in zip(edges, edges[1:])]


def changed_chunks(extents):
    joined = []
    for offset, length in sorted(extents):
        if joined:
            begin, end = joined[-1]
            if offset - end <= MIB and offset + length - begin <= LARGEST_CHUNK:
                joined[-1] = (begin, offset + length)
                continue
        joined.append((offset, offset + length))
    count = 1 if len(joined) < 10 else 2 if len(joined) < 50 else 3 if len(joined) < 200 else 4
    queues = [[] for _ in range(count)]
    for number, (begin, end) in enumerate(joined):
        queues[number % count].extend(pieces(begin, end))
    return queues


def pieces(begin, end):
    while begin < end:
        length = min(LARGEST_CHUNK, end - begin)
        yield begin, length
        begin += length


def looks_empty(data):
    if len(data) < SAMPLED_FROM:
        return not any(data)
    step = (len(data) - 8192) // 4
    return not any(any(data[n * step : n * step + 8192]) for n in range(5))


def put(handle, source, offset, length):
    source.seek(offset)
    data = source.read(length)
    delay = float(os.environ.get("LEGACY_RETRY_S", "1"))
    for attempt in range(4):
        try:
            if looks_empty(data):
                try:
                    return handle.zero(length, offset)
                except nbd.Error:
                    return handle.pwrite(data, offset)
            return handle.pwrite(data, offset)
        except nbd.Error:
            if attempt == 3:
                raise
            time.sleep(delay * 2**attempt)


def main():
    with open(os.environ["LEGACY_VM"]) as file:
        vm = json.load(file)
    try:
        Client(options(sys.argv[1:]), vm).run()
    except (Fatal, OSError, nbd.Error) as error:
        print(error, file=sys.stderr)
        os._exit(1)
    os._exit(0)


main()
