// All of vigil's public headers.
#pragma once

#include "vigil/address.hpp"
#include "vigil/bytes.hpp"
#include "vigil/callback.hpp"
#include "vigil/close_record.hpp"
#include "vigil/connection.hpp"
#include "vigil/connector.hpp"
#include "vigil/handler.hpp"
#include "vigil/listener.hpp"
#include "vigil/mailbox.hpp"
#include "vigil/reactor.hpp"
#include "vigil/result.hpp"
#include "vigil/socket.hpp"
#include "vigil/source.hpp"
#include "vigil/time.hpp"
#include "vigil/timeouts.hpp"
#include "vigil/timer_wheel.hpp"
