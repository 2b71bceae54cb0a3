import asyncio
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from aiohappyeyeballs import start_connection
from hypothesis import given
from hypothesis import strategies as st

from cdn_pipeline.fetch.addresses import AddressInfo, AddressRefused, guarded_socket_factory, is_public, may_dial
from cdn_pipeline.settings import Network

PRIVATE_IPV4_NETWORKS = [
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "168.63.129.16/32",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]


def _with_ipv4(prefix: str, shift: int = 0) -> "st.SearchStrategy[IPv6Address]":
    """Addresses of `prefix` that carry a private IPv4 address, its last bit `shift` bits from the end."""
    return private_ipv4.map(lambda ipv4: IPv6Address(int(IPv6Address(prefix)) | int(ipv4) << shift))


private_ipv4 = st.sampled_from(PRIVATE_IPV4_NETWORKS).flatmap(lambda network: st.ip_addresses(network=network, v=4))
private_ipv4_in_ipv6 = st.one_of(
    _with_ipv4("::ffff:0:0"),  # mapped
    _with_ipv4("::"),  # compatible
    _with_ipv4("::ffff:0:0:0"),  # translated
    _with_ipv4("2002::", 80),  # 6to4
    _with_ipv4("2001::", 64),  # Teredo server
    private_ipv4.map(lambda ipv4: IPv6Address(int(IPv6Address("2001::")) | int(ipv4) ^ 0xFFFFFFFF)),  # Teredo client
    _with_ipv4("64:ff9b::"),  # NAT64
    _with_ipv4("64:ff9b:1::"),  # NAT64, local use
    _with_ipv4("64:ff9b:1:0808:0008:0800::", 24),
    _with_ipv4("2a00:1450::5efe:0:0"),  # ISATAP
    _with_ipv4("2a00:1450::200:5efe:0:0"),
)


@given(private_ipv4)
def test_a_private_or_reserved_ipv4_address_is_refused(address: IPv4Address) -> None:
    assert not may_dial(address, 443)


@given(private_ipv4_in_ipv6)
def test_a_private_ipv4_address_in_any_ipv6_address_is_refused(address: IPv6Address) -> None:
    assert not may_dial(address, 443)


@given(st.ip_addresses(v=6).filter(lambda address: address not in IPv6Network("2000::/3")))
def test_ipv6_outside_global_unicast_is_refused_unless_it_carries_a_public_ipv4(address: IPv6Address) -> None:
    carries_ipv4 = address in IPv6Network("64:ff9b::/96") or address.ipv4_mapped
    assert carries_ipv4 or not may_dial(address, 443)


@pytest.mark.parametrize(
    "address",
    [
        "157.240.22.63",
        "8.8.8.8",
        "2a03:2880:f21c:e5:face:b00c:0:4420",
        "2606:4700::6810:85e5",
        "::ffff:157.240.22.63",
        "64:ff9b::157.240.22.63",
        "2a00:1450::5efe:157.240.22.63",
    ],
)
def test_public_addresses_may_be_dialled_on_the_ports_of_http_only(address: str) -> None:
    assert may_dial(ip_address(address), 80)
    assert may_dial(ip_address(address), 443)
    assert not may_dial(ip_address(address), 22)
    assert not may_dial(ip_address(address), 8080)


@pytest.mark.parametrize(
    "address",
    [
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fd00::1",
        "ff0e::1",
        "100::1",
        "2001:db8::1",
        "3fff::1",
        "5f00::1",
    ],
)
def test_special_ipv6_addresses_are_refused(address: str) -> None:
    assert not is_public(ip_address(address))


def test_an_allowed_network_may_be_dialled_on_any_port_and_its_neighbour_on_none() -> None:
    allowed: list[Network] = [IPv4Network("10.1.0.0/16"), IPv6Network("fd00:1::/32")]
    assert may_dial(ip_address("10.1.2.3"), 9000, allowed)
    assert may_dial(ip_address("::ffff:10.1.2.3"), 9000, allowed)
    assert may_dial(ip_address("fd00:1::5"), 9000, allowed)
    assert not may_dial(ip_address("10.2.0.1"), 443, allowed)
    assert not may_dial(ip_address("64:ff9b::10.1.2.3"), 443, allowed)


def _tcp(address: str, port: int) -> AddressInfo:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)


def test_a_host_whose_addresses_are_all_refused_is_refused_by_name_of_one() -> None:
    """Several attempts at once: the dialler must not blur the refusals into one error of its own."""
    addresses = [_tcp("10.0.0.1", 80), _tcp("::1", 80), _tcp("192.168.0.1", 80)]
    with pytest.raises(AddressRefused) as refused:
        asyncio.run(start_connection(addresses, happy_eyeballs_delay=0.25, socket_factory=guarded_socket_factory([])))
    assert str(refused.value.address) in ("10.0.0.1", "::1", "192.168.0.1")


def test_a_refused_address_does_not_keep_the_dialler_from_the_next_one() -> None:
    async def dial() -> str:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        factory = guarded_socket_factory([IPv4Network("127.0.0.1/32")])
        addresses = [_tcp("127.0.0.2", port), _tcp("127.0.0.1", port)]
        async with server:
            connected = await start_connection(addresses, happy_eyeballs_delay=0.25, socket_factory=factory)
            with connected:
                return str(connected.getpeername()[0])

    assert asyncio.run(dial()) == "127.0.0.1"
