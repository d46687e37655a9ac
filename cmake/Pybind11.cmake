# pybind11 through CMake if it can be found, else as the Python package of the interpreter in use (third_party/README.md).

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
set(PYBIND11_FINDPYTHON ON)
if(NOT EXISTS "${pybind11_DIR}")
  execute_process(COMMAND "${Python_EXECUTABLE}" -m pybind11 --cmakedir
                  OUTPUT_VARIABLE pybind11_cmake_directory OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET
                  RESULT_VARIABLE pybind11_missing)
  if(NOT pybind11_missing)
    set(pybind11_DIR "${pybind11_cmake_directory}")
  endif()
endif()
find_package(pybind11 2.13 CONFIG REQUIRED)
