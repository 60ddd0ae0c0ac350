#include "vigil/address.hpp"

#include <doctest/doctest.h>
#include <netinet/in.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>

#include "socket_calls.hpp"

namespace {

using vigil::Address;
using vigil::PeerAddress;
using Family = vigil::Address::Family;

TEST_CASE("an address reads back as it was written") {
  const char* const written[] = {"127.0.0.1:7000",  "0.0.0.0:0",           "255.255.255.255:65535", "[::1]:7000",
                                 "[::]:0",          "[fe80::1%eth0]:7000", "[fe80::1%7]:1",         "[ff02::1%eth0]:1",
                                 "[2001:db8::1]:1", "unix:/run/vigil",     "unix:relative",         "unix:@vigil"};
  for (const char* text : written) {
    INFO(std::string(text));
    const auto address = Address::parse(text);
    REQUIRE(address);
    CHECK(address->to_string() == text);
    CHECK(Address::parse(address->to_string()).value() == *address);
  }
}

TEST_CASE("an address has the parts it was written with") {
  const Address ipv4 = Address::parse("127.0.0.1:7000").value();
  const Address ipv6 = Address::parse("[fe80::1%eth0]:80").value();
  const Address path = Address::parse("unix:/run/vigil").value();
  const Address name = Address::parse("unix:@vigil").value();

  CHECK(ipv4.family() == Family::ipv4);
  CHECK(ipv4.port() == 7000);
  CHECK(ipv4.ip()[0] == 127);
  CHECK(ipv6.family() == Family::ipv6);
  CHECK(ipv6.scope() == "eth0");
  CHECK(ipv6.is_link_local());
  CHECK(path.family() == Family::unix_path);
  CHECK(path.path() == "/run/vigil");
  CHECK(path.port() == 0);
  CHECK(name.family() == Family::unix_abstract);
  CHECK(name.path() == "vigil");
}

TEST_CASE("IPv6 addresses are written in their shortest form") {
  CHECK(Address::parse("[0:0:0:0:0:0:0:1]:1").value().to_string() == "[::1]:1");
  CHECK(Address::parse("[2001:DB8::ABCD]:1").value().to_string() == "[2001:db8::abcd]:1");
  CHECK(Address::parse("[::ffff:127.0.0.1]:1").value().to_string() == "[::ffff:127.0.0.1]:1");
}

TEST_CASE("what is not exactly an address is refused with EINVAL") {
  const char* const malformed[] = {"",
                                   ":",
                                   ":7000",
                                   "7000",
                                   "127.0.0.1",
                                   "127.0.0.1:",
                                   "127.0.0.1:65536",
                                   "127.0.0.1:99999",
                                   "127.0.0.1:100000",
                                   "127.0.0.1:18446744073709551617",
                                   "127.0.0.1:-1",
                                   "127.0.0.1:+1",
                                   "127.0.0.1: 1",
                                   "127.0.0.1:1 ",
                                   " 127.0.0.1:1",
                                   "127.0.0.1:080",
                                   "127.0.0.1:1x",
                                   "127.0.0.1:0x50",
                                   "127.0.0.1:1:2",
                                   "127.0.0.1:1\n",
                                   "127.0.0:1",
                                   "127.0.0.0.1:1",
                                   "127.0.0.256:1",
                                   "127.0.0.01:1",
                                   "127..0.1:1",
                                   ".127.0.0.1:1",
                                   "127.0.0.1.:1",
                                   "127.1:1",
                                   "1.2.3.4%lo:1",
                                   "localhost:7000",
                                   "::1:7000",
                                   "::1",
                                   "[::1]",
                                   "[::1]:",
                                   "[::1]7000",
                                   "[::1:7000",
                                   "::1]:7000",
                                   "[]:7000",
                                   "[::1]:65536",
                                   "[::1]]:1",
                                   "[[::1]]:1",
                                   "[::1::2]:1",
                                   "[12345::]:1",
                                   "[127.0.0.1]:1",
                                   "[fe80::1%]:7000",
                                   "[fe80::1%a b]:7000",
                                   "[fe80::1%a/b]:7000",
                                   "[fe80::1%a%b]:1",
                                   "[fe80::1%sixteen-letters-]:1",
                                   "[::1%lo]:1",
                                   "[2001:db8::1%eth0]:1",
                                   "unix:",
                                   "unix:@",
                                   "Unix:/run",
                                   "tcp:1"};
  for (const char* text : malformed) {
    INFO(std::string(text));
    const auto address = Address::parse(text);
    REQUIRE_FALSE(address);
    CHECK(address.error() == vigil::Error{"parse address", EINVAL, ""});
    CHECK(std::string_view(address.error().detail) != "");
  }
}

TEST_CASE("a NUL hides nothing behind it") {
  CHECK_FALSE(Address::parse(std::string_view("127.0.0.1:1\0", 12)));
  CHECK_FALSE(Address::parse(std::string_view("[::1\0]:1", 8)));
  CHECK_FALSE(Address::parse(std::string_view("unix:/run/a\0b", 13)));
}

TEST_CASE("a Unix path has at most 107 bytes") {
  const std::string longest(107, 'x');

  CHECK(Address::parse("unix:" + longest));
  CHECK(Address::parse("unix:@" + longest));
  CHECK_FALSE(Address::parse("unix:" + longest + "x"));
  CHECK_FALSE(Address::parse("unix:@" + longest + "x"));
}

TEST_CASE("a malformed address tells what is wrong with it") {
  const auto detail = [](const char* text) { return std::string(Address::parse(text).error().detail); };

  CHECK(detail("127.0.0.1:65536") == "port is not 0 to 65535");
  CHECK(detail("[::1]:65536") == "port is not 0 to 65535");
  CHECK(detail("127.0.0.1") == "no port");
  CHECK(detail("::1:7000") == "an IPv6 address needs brackets");
  CHECK(detail("localhost:1") == "not an IPv4 address");
}

TEST_CASE("an address with another port is otherwise the same") {
  CHECK(Address::parse("[fe80::1%eth0]:1").value().with_port(2) == Address::parse("[fe80::1%eth0]:2").value());
  CHECK(Address::parse("unix:@vigil").value().with_port(2) == Address::parse("unix:@vigil").value());
}

TEST_CASE("an address as the kernel takes it comes back the same") {
  for (const char* text : {"127.0.0.1:7000", "[::1]:7000", "unix:/run/vigil", "unix:@vigil", "[fe80::1%77]:7000"}) {
    INFO(std::string(text));
    const Address address = Address::parse(text).value();

    const auto resolved = vigil::resolve(address, "connect");

    REQUIRE(resolved);
    CHECK(vigil::from_socket_address(resolved->get(), resolved->length) == address);
  }
}

TEST_CASE("a scope is resolved to the interface of that name") {
  const auto resolved = vigil::resolve(Address::parse("[fe80::1%lo]:7000").value(), "connect");

  REQUIRE(resolved);
  CHECK(vigil::peer_from(resolved->get(), resolved->length).scope() == vigil::sys::interface_index("lo"));
}

TEST_CASE("an interface that is not there and a missing one are told apart") {
  const auto nowhere = vigil::resolve(Address::parse("[fe80::1%nowhere0]:7000").value(), "connect");
  const auto without = vigil::resolve(Address::parse("[fe80::1]:7000").value(), "connect");

  REQUIRE_FALSE(nowhere);
  CHECK(nowhere.error() == vigil::Error{"connect", ENODEV, ""});
  REQUIRE_FALSE(without);
  CHECK(without.error() == vigil::Error{"connect", EINVAL, ""});
}

TEST_CASE("the unnamed end of a Unix connection has an address too") {
  sockaddr_un unnamed{};
  unnamed.sun_family = AF_UNIX;

  const Address address = vigil::from_socket_address(reinterpret_cast<sockaddr*>(&unnamed), sizeof unnamed.sun_family);

  CHECK(address.family() == Family::unix_path);
  CHECK(address.to_string() == "unix:");
}

TEST_CASE("control bytes in a name a peer chose can't forge a line") {
  CHECK(Address::from_unix_abstract(std::string("a\nb\0c", 5)).to_string() == "unix:@a\\x0ab\\x00c");
}

TEST_CASE("a peer's address is small and says the same") {
  for (const char* text : {"127.0.0.1:7000", "[::1]:7000", "[fe80::1%77]:7000"}) {
    const auto resolved = vigil::resolve(Address::parse(text).value(), "connect");
    REQUIRE(resolved);

    const PeerAddress peer = vigil::peer_from(resolved->get(), resolved->length);

    CHECK(peer.to_string() == text);
    CHECK(peer.port() == 7000);
  }
}

TEST_CASE("of a Unix peer only its family is kept") {
  const auto resolved = vigil::resolve(Address::parse("unix:/run/vigil").value(), "connect");
  REQUIRE(resolved);

  CHECK(vigil::peer_from(resolved->get(), resolved->length).to_string() == "unix:");
}

}  // namespace
