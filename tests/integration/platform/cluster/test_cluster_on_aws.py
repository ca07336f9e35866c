"""Ray's AWS provider takes the cluster file from subnets to machines, on a simulated EC2."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from moto import mock_aws
from ray.autoscaler._private.aws import config as aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.aws.utils import resource_cache
from ray.autoscaler._private.util import prepare_config

ROOT = Path(__file__).parents[4]
REGION = "us-east-1"
ADDED = ("SubnetIds", "SecurityGroupIds")
"""What the provider adds to a node's configuration and takes out of the request again."""
ACCOUNT = "123456789012"  # moto's own


@pytest.fixture(scope="module")
def account() -> Iterator[dict[str, str]]:
    """Make the network and the profiles of the file's placeholders; return the ids by those."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        for cached in (resource_cache, aws._get_subnets_or_die):
            cached.cache_clear()
        ec2: Any = boto3.resource("ec2", REGION)
        iam: Any = boto3.client("iam", REGION)
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")
        private, public = (
            vpc.create_subnet(CidrBlock=f"10.0.{number}.0/24", AvailabilityZone=f"{REGION}a")
            for number in range(2)
        )
        group = vpc.create_security_group(GroupName="efa", Description="efa")
        for name in ("magicdistill-head", "magicdistill-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        yield {
            "subnet-00000000000000000": private.id,
            "subnet-00000000000000001": public.id,
            "sg-00000000000000000": group.id,
            "000000000000:": f"{ACCOUNT}:",
        }


@pytest.fixture
def filled(account: dict[str, str]) -> dict[str, Any]:
    """Return the cluster file with its placeholders filled in and Ray's defaults."""
    text = (ROOT / "cluster.yaml").read_text()
    for placeholder, value in account.items():
        text = text.replace(placeholder, value)
    return prepare_config(yaml.safe_load(text)) | {"head_node": {}}


def bootstrapped(config: dict[str, Any]) -> dict[str, Any]:
    """Run the provider's checks, except that of the key pair, which writes into the home folder."""
    config = aws._configure_from_network_interfaces(config)
    config = aws._configure_iam_role(config)
    config = aws._configure_security_group(aws._configure_subnet(config))
    aws._check_ami(config)
    return config


def start(config: dict[str, Any], name: str, count: int) -> list[Any]:
    """Start machines of a node type as the autoscaler does."""
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    node = config["available_node_types"][name]["node_config"]
    return list(provider.create_node(node, {"ray-node-kind": "worker"}, count).values())


def test_the_provider_finds_subnets_groups_profile_and_image(
    filled: dict[str, Any], account: dict[str, str]
) -> None:
    config = bootstrapped(filled)
    head, workers = (config["available_node_types"][name] for name in ("head", "h100x8"))
    assert set(workers["node_config"]["SubnetIds"]) == {account["subnet-00000000000000000"]}
    assert head["node_config"]["SubnetIds"] == [account["subnet-00000000000000001"]]
    assert config["head_node"] == {}  # no role with full access was made for it


def test_workers_start_in_the_private_subnet_and_the_head_gets_a_public_address(
    filled: dict[str, Any], account: dict[str, str]
) -> None:
    config = bootstrapped(filled)
    (head,), (worker,) = start(config, "head", 1), start(config, "h100x8", 1)
    assert head.public_ip_address and not worker.public_ip_address
    assert worker.instance_type == "p5.48xlarge"
    assert worker.subnet_id == account["subnet-00000000000000000"]
    assert worker.iam_instance_profile["Arn"].endswith("/magicdistill-worker")


def test_a_private_subnet_is_refused_without_internal_addresses(filled: dict[str, Any]) -> None:
    filled["provider"]["use_internal_ips"] = False
    with pytest.raises(Exception, match="No usable subnets"):
        bootstrapped(filled)


def test_ec2_gives_no_public_address_to_a_machine_of_many_cards(filled: dict[str, Any]) -> None:
    """The rule is EC2's: AssociatePublicIpAddress goes with one interface only."""
    for node in filled["available_node_types"].values():
        cards = node["node_config"]["NetworkInterfaces"]
        public = [card for card in cards if card.get("AssociatePublicIpAddress")]
        assert not public or len(cards) == 1
    assert filled["provider"]["use_external_head_ip"] is True


@pytest.mark.parametrize("on_demand", [False, True])
def test_ec2_takes_workers_in_a_capacity_block_and_on_demand_in_a_placement_group(
    filled: dict[str, Any], *, on_demand: bool
) -> None:
    """EC2's own model of the request, by which botocore validates, knows all fields."""
    node = bootstrapped(filled)["available_node_types"]["h100x8"]["node_config"]
    request = {key: value for key, value in node.items() if key not in ADDED}
    assert request["InstanceMarketOptions"] == {"MarketType": "capacity-block"}
    target = request["CapacityReservationSpecification"]["CapacityReservationTarget"]
    assert target["CapacityReservationId"].startswith("cr-")
    if on_demand:
        commented = re.findall(r"# (Placement: {.*?})", (ROOT / "cluster.yaml").read_text())
        request |= yaml.safe_load(commented[0])
        del request["InstanceMarketOptions"], request["CapacityReservationSpecification"]
    with pytest.raises(ClientError, match="DryRunOperation"):
        boto3.client("ec2", REGION).run_instances(**request, MinCount=1, MaxCount=1, DryRun=True)


def test_a_misspelt_field_of_ec2_would_be_found(filled: dict[str, Any]) -> None:
    node = copy.deepcopy(filled["available_node_types"]["h100x8"]["node_config"])
    node["InstanceMarketOption"] = node.pop("InstanceMarketOptions")
    with pytest.raises(Exception, match="InstanceMarketOption"):
        boto3.client("ec2", REGION).run_instances(**node, MinCount=1, MaxCount=1, DryRun=True)


def actions(role: str) -> set[str]:
    """Return what a role may do."""
    policy = json.loads((ROOT / "deploy" / "aws" / f"{role}-policy.json").read_text())
    listed = [statement["Action"] for statement in policy["Statement"]]
    return {action for part in listed for action in ([part] if isinstance(part, str) else part)}


def test_the_head_may_start_workers_with_their_profile_and_workers_may_read_and_write_s3() -> None:
    s3 = {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"}
    started = {"ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances"}
    assert {*started, "ec2:DescribeInstances", "iam:PassRole", "ssm:GetParameters", *s3} <= actions(
        "head"
    )
    assert actions("worker") == s3
