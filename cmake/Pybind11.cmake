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

# pip builds in a temporary environment whose path differs each time. Compiled against a copy in the build folder, whose
# files change only when their contents do, the bindings are not compiled again because of that.
set(pybind11_copy "${PROJECT_BINARY_DIR}/pybind11/include")
file(GLOB_RECURSE pybind11_headers RELATIVE "${pybind11_INCLUDE_DIR}" "${pybind11_INCLUDE_DIR}/pybind11/*")
foreach(header IN LISTS pybind11_headers)
  get_filename_component(folder "${pybind11_copy}/${header}" DIRECTORY)
  file(MAKE_DIRECTORY "${folder}")
  file(COPY_FILE "${pybind11_INCLUDE_DIR}/${header}" "${pybind11_copy}/${header}" ONLY_IF_DIFFERENT)
endforeach()
set_target_properties(pybind11::pybind11_headers PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${pybind11_copy}")
