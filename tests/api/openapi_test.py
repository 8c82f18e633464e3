#!/usr/bin/env python3
"""docs/api/openapi.yaml and what is served are the same: paths, members of configurations, and every answer of a running process."""
import os
import re

import jsonschema
import yaml

from harness import ROOT, Case, main, wait_until

with open(os.path.join(ROOT, "docs", "api", "openapi.yaml"), encoding="utf-8") as description:
    API = yaml.safe_load(description)


def rows(name, pattern):
    with open(os.path.join(ROOT, "src", "api", name), encoding="utf-8") as file:
        return re.findall(pattern, file.read(), re.MULTILINE)


ENDPOINTS = rows("endpoints.def", r'^ENDPOINT\((\w+), "([^"]+)", (\w+), (\w+), ".*"\)$')
FIELDS = rows("vm_config_fields.def", r"^FIELD\((\w+), (\w+), (USED|HINT|OFF)\)$")
SCHEMAS = {"vm": "VmConfig", "cpus": "CpusConfig", "memory": "MemoryConfig", "payload": "PayloadConfig", "disk": "DiskConfig",
           "net": "NetConfig", "rng": "RngConfig", "console": "ConsoleConfig", "doppel": "DoppelConfig", "resize": "VmResize", "medium": "DoppelMedium"}
REQUESTS = ("resize", "medium")             # bodies of their own, not parts of a VmConfig


def resolve(schema):
    """OpenAPI 3.0 has `nullable` where JSON Schema has a type."""
    if isinstance(schema, dict):
        schema = {key: resolve(value) for key, value in schema.items()}
        if schema.pop("nullable", False):
            schema["type"] = [schema["type"], "null"]
        return schema
    return [resolve(item) for item in schema] if isinstance(schema, list) else schema


COMPONENTS = resolve(API["components"])


def validate(value, schema):
    jsonschema.validate(value, dict(resolve(schema), components=COMPONENTS))


def with_member(section, name, value):
    """A VmConfig in which that member has the value."""
    config = {"payload": {"kernel": "k"}}
    if section == "vm":
        config[name] = value
    elif section in ("disk", "net"):
        config["disks" if section == "disk" else "net"] = [dict({"path": "x"} if section == "disk" else {}, **{name: value})]
    elif section == "console":
        config["serial"] = {"mode": "Null", name: value}
    else:
        config[section] = dict(config.get(section, {}), **{name: value})
    return config


class Described(Case):
    def test_every_row_is_described_and_nothing_else(self):
        described = {(method.upper(), path, "requestBody" in operation) for path, item in API["paths"].items()
                     for method, operation in item.items()}
        self.assertEqual({(method, path, body == "BODY_JSON") for method, path, _, body in ENDPOINTS}, described)

    def test_every_member_is_described_and_nothing_else(self):
        for section, schema in SCHEMAS.items():
            members = COMPONENTS["schemas"][schema]
            self.assertEqual({name for where, name, _ in FIELDS if where == section}, set(members["properties"]), schema)
            self.assertFalse(members["additionalProperties"], schema)
        for section, name, use in FIELDS:
            reference = COMPONENTS["schemas"][SCHEMAS[section]]["properties"][name].get("$ref", "")
            self.assertEqual(use == "OFF", reference.endswith("/NotOffered"), name)

    def test_the_description_is_sound(self):
        for schema in COMPONENTS["schemas"].values():
            jsonschema.Draft4Validator.check_schema(schema)


class Served(Case):
    def setUp(self):
        super().setUp()
        self.environment["XDG_CACHE_HOME"] = os.path.join(self.folder, "cache")
        self.doppel("serve", "-d", "--name", "vm")

    def call(self, method, path, body=None, status=None):
        """One request whose answer must be as described."""
        status, answer = self.ask("vm", method, path, body, status)
        responses = API["paths"][path][method.lower()]["responses"]
        self.assertIn(str(status), responses, "%s %s answers %d: %s" % (method, path, status, answer))
        response = responses[str(status)]
        if "$ref" in response:
            response = API["components"]["responses"][response["$ref"].rsplit("/", 1)[1]]
        if "content" in response:
            validate(answer, response["content"]["application/json"]["schema"])
        else:
            self.assertIsNone(answer)
        return status, answer

    def cd_image(self, name):
        path = os.path.join(self.folder, name + ".iso")
        with open(path, "wb") as file:
            file.truncate(1 << 16)
        return path

    def config(self):
        return {"cpus": {"boot_vcpus": 2, "max_vcpus": 2}, "memory": {"size": 32 << 20, "shared": True, "hotplug_size": 0},
                "payload": {"kernel": "/no/such/kernel", "cmdline": "quiet", "initramfs": "/no/such/initrd"},
                "disks": [{"path": "/no/such/disk", "readonly": True, "image_type": "Raw", "id": "d0", "num_queues": 1}],
                "net": [{"mac": "52:54:00:12:34:56", "ip": "192.168.249.1", "mask": "255.255.255.0"}],
                "rng": {"src": "/dev/urandom", "iommu": False}, "console": {"mode": "Off"}, "serial": {"mode": "Null"},
                "iommu": False, "watchdog": False, "doppel": {"engine": "dbt"}}

    def test_wrong_methods_and_bodies_are_refused(self):
        self.assertEqual(self.ask("vm", "GET", "/api/v1/vm.nonsense")[0], 404)
        for method, path, _, body in ENDPOINTS:
            connection = self.connect("vm")
            connection.request("POST", path)
            answer = connection.getresponse()
            self.assertEqual((answer.status, answer.getheader("Allow")), (405, method), path)
            connection.close()
            for text in ((None, "", "[]", "{", '{"a":1,"a":2}', "\xff") if body == "BODY_JSON" else ()):
                connection = self.connect("vm")
                connection.request(method, path, text and text.encode("latin-1"))
                self.assertEqual(connection.getresponse().status, 400, (path, text))
                connection.close()

    def test_before_there_is_a_machine(self):
        for method, path, _, body in ENDPOINTS:
            if path not in ("/api/v1/vmm.shutdown", "/api/v1/vm.create"):
                self.call(method, path, {} if body == "BODY_JSON" else None)
        self.call("GET", "/api/v1/vm.info", status=404)
        self.call("PUT", "/api/v1/vm.boot", status=404)

    def test_a_configuration_comes_back(self):
        config = self.config()
        validate(config, {"$ref": "#/components/schemas/VmConfig"})
        self.call("PUT", "/api/v1/vm.create", config, 204)
        self.call("PUT", "/api/v1/vm.create", config, 405)
        info = self.call("GET", "/api/v1/vm.info", status=200)[1]
        self.assertEqual(info["state"], "Created")
        for section in ("cpus", "payload", "console"):
            self.assertEqual(info["config"][section], config[section])
        self.assertEqual(info["config"]["memory"]["size"], 32 << 20)
        self.assertEqual(info["config"]["serial"], {"mode": "Off"})
        self.assertEqual(info["config"]["disks"][0]["image_type"], "Raw")
        self.assertEqual(info["config"]["net"][0]["mac"], "52:54:00:12:34:56")
        self.assertEqual(info["config"]["doppel"]["engine"], "dbt")
        self.call("PUT", "/api/v1/vm.add-disk", {"path": "/no/second/disk"}, 204)
        self.call("PUT", "/api/v1/vm.add-net", {"tap": "tap7"}, 204)
        self.call("PUT", "/api/v1/vm.resize", {"desired_vcpus": 3, "desired_ram": 64 << 20}, 204)
        self.call("PUT", "/api/v1/vm.resize", {"desired_vcpus": 65}, 400)
        self.call("PUT", "/api/v1/vm.add-disk", {}, 400)
        info = self.call("GET", "/api/v1/vm.info", status=200)[1]["config"]
        self.assertEqual((info["cpus"]["boot_vcpus"], info["memory"]["size"]), (3, 64 << 20))
        self.assertEqual([disk["path"] for disk in info["disks"]], ["/no/such/disk", "/no/second/disk"])
        self.assertEqual(info["net"][1]["tap"], "tap7")
        self.assertIn("/no/such/kernel", self.call("PUT", "/api/v1/vm.boot", status=400)[1][0])
        self.call("PUT", "/api/v1/vm.delete", status=204)
        self.call("GET", "/api/v1/vm.info", status=404)

    def test_a_configuration_that_came_back_can_be_created_again(self):
        self.call("PUT", "/api/v1/vm.create", self.config(), 204)
        first = self.call("GET", "/api/v1/vm.info")[1]["config"]
        self.call("PUT", "/api/v1/vm.delete", status=204)
        self.call("PUT", "/api/v1/vm.create", first, 204)
        self.assertEqual(self.call("GET", "/api/v1/vm.info")[1]["config"], first)

    def test_a_device_keeps_its_id_when_another_goes(self):
        def ids():
            return [disk["id"] for disk in self.call("GET", "/api/v1/vm.info", status=200)[1]["config"]["disks"]]
        self.call("PUT", "/api/v1/vm.create", dict(self.config(), disks=[{"path": "/no/such/%d" % i} for i in range(3)]), 204)
        self.assertEqual(ids(), ["_disk0", "_disk1", "_disk2"])
        self.call("PUT", "/api/v1/vm.remove-device", {"id": "_disk0"}, 204)
        self.call("PUT", "/api/v1/vm.remove-device", {"id": "_disk0"}, 400)
        self.assertEqual(ids(), ["_disk1", "_disk2"])
        self.call("PUT", "/api/v1/vm.add-disk", {"path": "/no/such/new", "id": "_disk1"}, 400)
        self.assertEqual(ids(), ["_disk1", "_disk2"])
        self.call("PUT", "/api/v1/vm.add-disk", {"path": "/no/such/new"}, 204)
        self.assertEqual(ids(), ["_disk0", "_disk1", "_disk2"])

    def test_a_cloud_image_gets_its_seed(self):
        config = {"payload": {"firmware": self.firmware()}, "memory": {"size": 16 << 20}, "disks": [{"path": self.cd_image("disk")}]}
        key = "ssh-ed25519 AAAA \"me\\"

        def create(status, **seed):
            return self.call("PUT", "/api/v1/vm.create", dict(config, doppel=seed), status)[1]

        self.assertIn("'#cloud-config'", create(400, user_data="packages: [vim]")[0])
        self.assertIn("'ssh_keys' is a private key", create(400, ssh_keys="-----BEGIN OPENSSH PRIVATE KEY-----")[0])
        self.assertIn("no public SSH key in 'ssh_keys'", create(400, ssh_keys="")[0])
        create(204, user_data="#cloud-config\npackages: [vim]\n", ssh_keys="# mine\n" + key + "\r\n\nssh-rsa BBBB")
        disks = self.call("GET", "/api/v1/vm.info", status=200)[1]["config"]["disks"]
        self.assertEqual((len(disks), disks[1]["readonly"]), (2, True))
        self.assertTrue(disks[1]["path"].startswith(self.folder + "/cache/doppel/seeds/"))
        self.assertEqual(os.stat(disks[1]["path"]).st_mode & 0o077, 0)
        with open(disks[1]["path"], "rb") as file:
            seed = file.read()
        self.assertIn(b"#cloud-config\npackages: [vim]\n", seed)
        self.assertRegex(seed, rb"instance-id: vm-[0-9a-f]{16}\nlocal-hostname: vm\npublic-keys: ")
        keys = re.search(rb"public-keys: (\[.*\])\n", seed)[1]
        self.assertEqual(yaml.safe_load(keys), [key, "ssh-rsa BBBB"])
        self.call("PUT", "/api/v1/vm.boot", status=204)

    def test_a_cd_is_changed(self):
        def cds():
            return [disk.get("path") for disk in self.call("GET", "/api/v1/vm.info", status=200)[1]["config"]["disks"]]

        def change(status, **body):
            return self.call("PUT", "/doppel/v1/change-medium", body, status)[1]

        first, second = (self.cd_image(name) for name in ("first", "second"))
        config = {"cpus": {"boot_vcpus": 1, "max_vcpus": 1}, "memory": {"size": 16 << 20}, "payload": {"firmware": self.firmware()},
                  "disks": [{"doppel_bus": "cdrom", "id": "a"}, {"doppel_bus": "cdrom", "path": first}]}
        self.call("PUT", "/api/v1/vm.create", config, 204)
        change(204, id="a", path="/no/such/image")
        self.assertEqual(cds(), ["/no/such/image", first])
        change(204, id="a", path=None)
        self.call("PUT", "/api/v1/vm.boot", status=204)
        self.assertEqual(cds(), [None, first])
        self.assertIn("There are a, _disk1", change(400, path=second)[0])
        self.assertIn("'b'", change(400, id="b", path=second)[0])
        self.assertIn("'path'", change(400, id="a")[0])
        self.assertIn("'path'", change(400, id="a", path="")[0])
        self.assertIn("'nonsense'", change(400, id="a", path=second, nonsense=1)[0])
        self.assertIn("/no/such/image", change(400, id="_disk1", path="/no/such/image")[0])
        self.assertEqual(cds(), [None, first])
        change(204, id="a", path=second, image_type="Raw")
        change(204, id="_disk1", path=second)
        self.call("PUT", "/api/v1/vm.pause", status=204)
        change(204, id="a", path=first)
        self.assertEqual(cds(), [first, second])
        self.call("PUT", "/api/v1/vm.resume", status=204)
        self.call("PUT", "/api/v1/vm.reboot", status=204)
        self.call("PUT", "/api/v1/vm.shutdown", status=204)
        self.assertEqual(cds(), [first, second])
        self.call("PUT", "/api/v1/vm.boot", status=204)

    def test_what_is_not_offered_is_refused_by_name(self):
        for section, name, use in FIELDS:
            if section in REQUESTS or use != "OFF":
                continue
            for nothing in (False, 0, None, "", [], {}, {"x": [], "y": {"z": False}}):
                self.call("PUT", "/api/v1/vm.create", with_member(section, name, nothing), 204)
                self.call("PUT", "/api/v1/vm.delete", status=204)
            for something in (True, 1, "x", [0], {"x": 1}, 0.5):
                reason = self.call("PUT", "/api/v1/vm.create", with_member(section, name, something), 400)[1][0]
                self.assertIn("'%s'" % name, reason)

    def test_what_is_unknown_or_malformed_is_refused_by_name(self):
        for section in SCHEMAS:
            if section not in REQUESTS:
                self.assertIn("'nonsense'", self.call("PUT", "/api/v1/vm.create", with_member(section, "nonsense", 1), 400)[1][0])
        for section, name, use in FIELDS:
            if use == "USED" and section not in REQUESTS:
                for wrong in (0.5, [0.5], {"x": {}}):
                    self.call("PUT", "/api/v1/vm.create", with_member(section, name, wrong), 400)
        for section, name, value in (("cpus", "boot_vcpus", 65), ("cpus", "max_vcpus", 2), ("memory", "size", 1 << 62), ("memory", "size", 4097),
                                     ("memory", "size", -1), ("net", "mac", "01:00:00:00:00:00"), ("net", "tap", "a,b"),
                                     ("disk", "path", ""), ("disk", "image_type", "Vhdx"), ("console", "mode", "Loud"),
                                     ("console", "mode", "File"), ("payload", "kernel", "a\0b"), ("vm", "disks", [{"path": "x"}] * 17)):
            self.call("PUT", "/api/v1/vm.create", with_member(section, name, value), 400)

    def test_a_life_in_requests(self):
        config = {"cpus": {"boot_vcpus": 1, "max_vcpus": 1}, "memory": {"size": 16 << 20}, "payload": {"firmware": self.firmware()}}
        self.call("PUT", "/api/v1/vm.create", config, 204)
        self.call("PUT", "/api/v1/vm.boot", status=204)
        self.assertEqual(self.state("vm"), "Running")
        self.call("PUT", "/api/v1/vm.boot", status=405)
        info = self.call("GET", "/api/v1/vm.info", status=200)[1]
        self.assertEqual(info["device_tree"]["host-bridge"]["pci_bdf"], "0000:00:00.0")
        self.assertGreater(self.call("GET", "/api/v1/vm.counters", status=200)[1]["machine"]["instructions"], 0)
        self.call("GET", "/doppel/v1/info", status=200)
        self.call("PUT", "/api/v1/vm.pause", status=204)
        self.call("PUT", "/api/v1/vm.pause", status=405)
        self.call("PUT", "/api/v1/vm.resume", status=204)
        self.call("PUT", "/api/v1/vm.resume", status=405)
        self.call("PUT", "/api/v1/vm.nmi", status=204)
        self.call("PUT", "/api/v1/vm.add-disk", {"path": "x"}, 400)
        self.call("PUT", "/api/v1/vm.resize", {"desired_vcpus": 2}, 501)
        self.call("PUT", "/api/v1/vm.remove-device", {"id": "_disk0"}, 400)
        self.call("PUT", "/doppel/v1/monitor", {"command": "info cpus"}, 200)
        self.call("PUT", "/doppel/v1/monitor", {"command": 7}, 400)
        self.call("PUT", "/doppel/v1/console", {}, 400)
        self.call("PUT", "/api/v1/vm.reboot", status=204)
        self.call("PUT", "/api/v1/vm.shutdown", status=204)
        self.assertEqual(self.state("vm"), "Created")
        self.call("PUT", "/api/v1/vm.shutdown", status=405)
        self.call("PUT", "/api/v1/vm.boot", status=204)
        self.assertEqual(self.state("vm"), "Running")
        self.call("PUT", "/api/v1/vm.delete", status=204)
        self.assertEqual(self.state("vm"), "Empty")
        self.call("PUT", "/api/v1/vm.create", config, 204)
        self.call("PUT", "/api/v1/vm.boot", status=204)
        self.call("PUT", "/api/v1/vm.power-button", status=204)
        wait_until("the guest has powered off, and the process ended", lambda: self.state("vm") == "Ended")
        self.assertEqual(self.ps()[0]["reason"], "the guest powered off")


main(__name__)
