#include "progress_bar.hpp"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace vigil::tools {
namespace {

std::size_t terminal_columns() {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

bool understands_drawing() {
  const char* terminal = std::getenv("TERM");
  return ::isatty(STDERR_FILENO) == 1 && terminal != nullptr && std::strcmp(terminal, "dumb") != 0;
}

constexpr const char* start_of_line_cleared = "\r\033[K";

}  // namespace

ProgressBar::ProgressBar() : shown_(understands_drawing()) {}

void ProgressBar::draw(const std::string& label, double fraction, const std::string& text) {
  if (!shown_) return;
  fraction = std::clamp(fraction, 0.0, 1.0);
  char percent[16];
  std::snprintf(percent, sizeof percent, " %3.0f %%  ", fraction * 100);

  const std::size_t columns = terminal_columns();
  const std::size_t around = label.size() + std::strlen(percent) + text.size() + 4;  // space, brackets, the last column
  std::string line = start_of_line_cleared + label;
  if (columns > around + 5) {
    const std::size_t width = std::min<std::size_t>(columns - around, 50);
    const auto done = static_cast<std::size_t>(fraction * static_cast<double>(width));
    std::string bar(done, '=');
    if (done < width) bar += '>';
    bar.resize(width, ' ');
    line += " [" + bar + "]";
  }
  line += percent + text;
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
  drawn_ = true;
}

void ProgressBar::clear() {
  if (!drawn_) return;
  std::fputs(start_of_line_cleared, stderr);
  std::fflush(stderr);
  drawn_ = false;
}

}  // namespace vigil::tools
