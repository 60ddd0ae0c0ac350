// One line on a terminal that is drawn again and again; nothing at all where stderr is no terminal.
//
// Thread: one.
#pragma once

#include <string>

namespace vigil::tools {

class ProgressBar {
 public:
  ProgressBar();
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  [[nodiscard]] bool shown() const { return shown_; }
  /// `label [=======>      ]  53 %  text`, fitted to the terminal's width. `fraction` is 0 to 1.
  void draw(const std::string& label, double fraction, const std::string& text);
  /// Leaves the line empty, for what is printed next.
  void clear();

 private:
  bool shown_;
  bool drawn_ = false;
};

}  // namespace vigil::tools
