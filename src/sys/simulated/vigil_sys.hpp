// The simulated seam: nothing is inline here. sys.cpp forwards every call of sys/sys.hpp to the kernel installed on the calling
// thread (kernel.hpp).
#pragma once
