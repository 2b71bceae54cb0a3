"""Which addresses a download may dial.

Source URLs come from outside, so whoever writes one could point it into our network (SSRF). The decision falls when a
socket is made: for the address that DNS really gave, on every redirect, for literal addresses as for names. No second
look-up comes after it that could answer differently (DNS rebinding).
"""

import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from cdn_pipeline.settings import Network

Address = IPv4Address | IPv6Address
AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]

SocketFactory = Callable[[AddressInfo], socket.socket]

PUBLIC_PORTS = frozenset({80, 443})

# What `is_global` takes for public, and is not. Clouds serve a machine's credentials at two of them.
_REFUSED_IPV4 = (
    IPv4Network("192.0.0.0/24"),  # IETF protocols; Oracle's metadata at 192.0.0.192
    IPv4Network("192.88.99.0/24"),  # 6to4 relays
    IPv4Network("168.63.129.16/32"),  # Azure's own services, at a public address
)

# An allow-list, because `is_global` of older Pythons says yes to site-local, 6to4 and IPv4-translated addresses. All
# unicast that IANA has given out is in 2000::/3. Outside it, and so refused whole: IPv4-compatible, IPv4-translated and
# local-use NAT64 addresses (64:ff9b:1::/48, where only that network knows which bits are the IPv4 address).
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_REFUSED_UNICAST = (
    IPv6Network("2001::/23"),  # IETF protocols, Teredo among them
    IPv6Network("2002::/16"),  # 6to4
    IPv6Network("3fff::/20"),  # documentation
)
_ISATAP_MARKS = frozenset({0x0000_5EFE, 0x0200_5EFE})
_IPV4_BITS = 0xFFFF_FFFF


class AddressRefused(OSError):
    """A download led to an address that it must not dial.

    An `OSError`, so that the dialler goes on to the host's other addresses. The message is the same for every address:
    aiohappyeyeballs then hands out the exception itself, not a summary of several.
    """

    def __init__(self, address: Address, port: int) -> None:
        super().__init__("address refused")
        self.address = address
        self.port = port


def guarded_socket_factory(allowed_networks: Sequence[Network]) -> SocketFactory:
    """Makes aiohttp's `socket_factory`: a TCP socket for an address that may be dialled.

    The factory raises `AddressRefused` for all others, before any packet is sent.
    """

    def make_socket(info: AddressInfo) -> socket.socket:
        family, kind, protocol, _, (host, port, *_) = info
        address = ip_address(host)
        if not may_dial(address, port, allowed_networks):
            raise AddressRefused(address, port)
        return socket.socket(family, kind, protocol)

    return make_socket


def may_dial(address: Address, port: int, allowed_networks: Sequence[Network] = ()) -> bool:
    """Whether a download may connect: public addresses on ports 80 and 443, `allowed_networks` on any port."""
    return is_inside(address, allowed_networks) or (port in PUBLIC_PORTS and is_public(address))


def is_inside(address: Address, networks: Sequence[Network]) -> bool:
    """Whether the address, or the IPv4 address that it maps, lies in one of the networks."""
    plain = _unmapped(address)
    return any(plain in network for network in networks)


def is_public(address: Address) -> bool:
    """Whether the address is globally routable unicast, as is every IPv4 address that it carries traffic to."""
    address = _unmapped(address)
    if isinstance(address, IPv4Address):
        refused = address.is_multicast or any(address in network for network in _REFUSED_IPV4)
        return address.is_global and not refused
    if address in _NAT64:
        return is_public(_last_ipv4(address))
    if address not in _GLOBAL_UNICAST or any(address in network for network in _REFUSED_UNICAST):
        return False
    return address.is_global and (not _is_isatap(address) or is_public(_last_ipv4(address)))


def _unmapped(address: Address) -> Address:
    """The IPv4 address of `::ffff:a.b.c.d`, which is what the kernel dials; any other address as it is."""
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def _is_isatap(address: IPv6Address) -> bool:
    return (int(address) >> 32) & _IPV4_BITS in _ISATAP_MARKS


def _last_ipv4(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & _IPV4_BITS)
