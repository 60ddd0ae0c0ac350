#include "epoll_poller.hpp"

namespace vigil {

EpollPoller::EpollPoller(std::size_t events_per_wait)
    : descriptor_(sys::epoll_create()), capacity_(static_cast<int>(events_per_wait)), events_(new epoll_event[events_per_wait]) {}

EpollPoller::~EpollPoller() {
  if (descriptor_ >= 0) sys::close(descriptor_);
}

int EpollPoller::control(int operation, Source& source, Interest interest) {
  static constexpr std::uint32_t events_of[] = {
      0, EPOLLIN, EPOLLOUT, EPOLLIN | EPOLLOUT, EPOLLIN | EPOLLET, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET};
  epoll_event event{};
  event.events = events_of[static_cast<std::size_t>(interest)];
  event.data.u64 = reinterpret_cast<std::uint64_t>(&source) | (source.generation_ & tag_mask);
  return -sys::epoll_control(descriptor_, operation, source.descriptor_, &event);
}

void EpollPoller::remove(Source& source) {
  // ENOENT and EBADF: the user closed the descriptor first, and the kernel dropped the entry with it.
  epoll_event unused{};
  sys::epoll_control(descriptor_, EPOLL_CTL_DEL, source.descriptor_, &unused);
}

}  // namespace vigil
